//! `model-registry publish`: a folder becomes a version, once.

use std::path::Path;
use std::process::{Command, Output};

use verdict_api::registry::{GetModelRequest, VersionStatus};

use crate::world::{World, artifact};

fn publish(registry: &str, dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_model-registry"))
        .args(["publish", "--registry", registry, "--model", "m", "--task", "text-embedding", "--dir"])
        .arg(dir)
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_published_once_and_its_alias_follows() {
    let world = World::embedded().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    std::fs::write(dir.path().join("1_Pooling/config.json"), "{}").unwrap();
    let weights = vec![3; 5 << 20];
    std::fs::write(dir.path().join("model.safetensors"), &weights).unwrap();

    let arguments = ["--alias", "champion", "--parameter", "pooling=cls", "--tag", "team=search"];
    for _ in 0..2 {
        let output = publish(world.channel.url(), dir.path(), &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let version = world.get("m", 1).await.unwrap();
        assert_eq!(version.status(), VersionStatus::Ready);
        assert_eq!(version.parameters["pooling"], "cls");
        assert_eq!(version.tags["team"], "search");
        assert_eq!(version.aliases, ["champion"]);
        let files = [artifact("1_Pooling/config.json", b"{}"), artifact("model.safetensors", &weights)];
        assert_eq!(version.artifacts, files);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("m/1 {}\n", version.digest));
    }

    std::fs::write(dir.path().join("model.safetensors"), b"other weights").unwrap();
    assert!(publish(world.channel.url(), dir.path(), &arguments).status.success());
    let get = GetModelRequest { name: "m".to_owned() };
    let model = world.client.clone().get_model(get).await.unwrap().into_inner().model.unwrap();
    assert_eq!((model.latest_version, model.aliases["champion"]), (2, 2));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_says_why() {
    let world = World::embedded().await;
    let dir = tempfile::tempdir().unwrap();
    let problem = |output: Output| {
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let empty = problem(publish(world.channel.url(), dir.path(), &[]));
    assert!(empty.contains("holds no files"), "{empty}");
    let missing = problem(publish(world.channel.url(), &dir.path().join("absent"), &[]));
    assert!(missing.contains("cannot read") && missing.contains("absent"), "{missing}");
    std::fs::write(dir.path().join("signature.json"), r#"{"inputs": [{"name": "a", "type": "date"}]}"#).unwrap();
    let signature = dir.path().join("signature.json").display().to_string();
    let unknown = problem(publish(world.channel.url(), dir.path(), &["--signature", &signature]));
    assert!(unknown.contains("signature.json") && unknown.contains("date"), "{unknown}");
    world.stop().await;
}
