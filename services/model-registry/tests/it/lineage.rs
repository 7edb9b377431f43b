//! From a run to the versions it made, and to where they serve.

use serde_json::json;
use verdict_api::registry::get_lineage_request::Of;
use verdict_api::registry::lineage_service_client::LineageServiceClient;
use verdict_api::registry::{
    Deployment, DeploymentState, GetLineageRequest, GetLineageResponse, ListDeploymentsRequest,
    ReportDeploymentRequest, Serving, VersionName,
};
use verdict_chassis::client::Channel;

use crate::world::{Answer, World, reason};

mod embedded {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_is_followed_both_ways() {
        super::a_version_is_followed_both_ways(super::World::embedded().await).await;
    }
}

mod live {
    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_is_followed_both_ways() {
        super::a_version_is_followed_both_ways(super::World::production().await).await;
    }
}

mod lost {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use model_registry::audit;
    use model_registry::lineage::{Filter, Report, Serving};
    use model_registry::model::Micros;
    use model_registry::names::{ModelName, VersionId};
    use model_registry::store::{self, Call, Everything};
    use verdict_testkit::postgres;

    use super::*;
    use crate::world::PATIENCE;

    /// What is lost ends when it has been lost for long, as of when it was given up, and the audit log says so.
    async fn what_was_lost_long_ago_has_ended(store: Arc<dyn Everything>) {
        let report = |deployment: &str, expires: i64| Report {
            deployment: deployment.to_owned(),
            serving: BTreeSet::from([Serving {
                reference: "m@champion".to_owned(),
                version: VersionId { model: ModelName::parse("model", "m").unwrap(), number: 1 },
                digest: "sha256:1".to_owned(),
            }]),
            expires: Micros(expires),
        };
        for (deployment, expires) in [("lost-long-ago", 100), ("just-lost", 900), ("serving", 2_000)] {
            store.report_deployment(Micros(10), &report(deployment, expires)).await.unwrap();
        }
        let call = Call { now: Micros(1_000), caller: "model-registry".to_owned(), ..Call::now() };
        assert_eq!(store.end_lost_deployments(&call, Micros(500)).await.unwrap(), 1);
        assert_eq!(store.end_lost_deployments(&call, Micros(500)).await.unwrap(), 0);
        let listed = async |include_ended: bool| {
            let found = store.deployments(&Filter { model: None, include_ended, offset: 0 }, 10).await.unwrap();
            found.into_iter().map(|found| (found.deployment, found.end)).collect::<Vec<_>>()
        };
        assert_eq!(listed(false).await, [("just-lost".to_owned(), None), ("serving".to_owned(), None)]);
        assert_eq!(listed(true).await[1], ("lost-long-ago".to_owned(), Some(Micros(100))));
        let filter = audit::Filter { resource: "deployments/lost-long-ago".to_owned(), ..Default::default() };
        let told = store.audit_entries(&filter, 10).await.unwrap();
        assert_eq!((told.len(), &*told[0].action, &*told[0].caller), (1, "deployment.end", "model-registry"));
        // Heard of again, it begins anew.
        store.report_deployment(Micros(1_000), &report("lost-long-ago", 2_000)).await.unwrap();
        assert_eq!((listed(false).await.len(), listed(true).await.len()), (3, 4));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn embedded() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("registry.db").display());
        what_was_lost_long_ago_has_ended(store::open(&url.parse().unwrap(), 2, true).await.unwrap()).await;
    }

    mod live {
        use super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn production() {
            let url = postgres::database().await;
            what_was_lost_long_ago_has_ended(store::open(&url.parse().unwrap(), 4, true).await.unwrap()).await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_registry_ends_what_was_lost_long_ago() {
            let world = World::production().await;
            report(&world, "a:1", vec![serving("credit@champion", 1)]).await;
            world.sql("UPDATE deployments SET expire_time = expire_time - 86400000000").await;
            assert_eq!(listed(&world, false, 100).await[0].state(), DeploymentState::Lost);
            world.sql("UPDATE deployments SET expire_time = expire_time - 7 * 86400000000").await;
            let replica = world.replica().await;
            let until = Instant::now() + PATIENCE;
            while !listed(&world, false, 100).await.is_empty() {
                assert!(Instant::now() < until, "it is listed still");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(listed(&world, true, 100).await[0].state(), DeploymentState::Ended);
            replica.stop().await;
            world.stop().await;
        }
    }
}

fn lineage(world: &World) -> LineageServiceClient<Channel> {
    LineageServiceClient::new(world.channel.clone())
}

fn serving(reference: &str, version: i64) -> Serving {
    Serving { reference: reference.into(), model: "credit".into(), version, digest: format!("sha256:{version}") }
}

async fn report(world: &World, deployment: &str, serving: Vec<Serving>) {
    let request = ReportDeploymentRequest { deployment: deployment.into(), serving, lease_seconds: 0 };
    lineage(world).report_deployment(request).await.unwrap();
}

async fn of(world: &World, of: Of) -> Answer<GetLineageResponse> {
    Ok(lineage(world).get_lineage(GetLineageRequest { of: Some(of) }).await?.into_inner())
}

async fn listed(world: &World, include_ended: bool, page_size: i32) -> Vec<Deployment> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let list = ListDeploymentsRequest { model: "credit".into(), include_ended, page_size, page_token };
        let page = lineage(world).list_deployments(list).await.unwrap().into_inner();
        all.extend(page.deployments);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

async fn a_version_is_followed_both_ways(world: World) {
    let call = async |path: &str, body| {
        let (status, answer) = world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    let begun = call("runs/create", json!({"experiment_id": "0", "start_time": 5, "run_name": "grid"})).await;
    let run = begun["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let dataset = json!({"name": "loans", "digest": "d1", "source_type": "local", "source": "{}"});
    let tags = json!([{"key": "mlflow.data.context", "value": "training"}]);
    call("runs/log-inputs", json!({"run_id": run, "datasets": [{"dataset": dataset, "tags": tags}]})).await;
    for name in ["credit", "credit-eu"] {
        call("registered-models/create", json!({"name": name})).await;
    }
    let source = format!("mlflow-artifacts:/0/{run}/artifacts/model");
    call("model-versions/create", json!({"name": "credit", "source": source, "run_id": run})).await;
    call("model-versions/create", json!({"name": "credit", "source": source, "run_id": run})).await;
    call("model-versions/create", json!({"name": "credit-eu", "source": "models:/credit/1"})).await;

    report(&world, "a:1", vec![serving("credit@champion", 1), serving("credit/2", 2)]).await;
    report(&world, "b:1", vec![serving("credit@champion", 1)]).await;
    report(&world, "a:1", vec![serving("credit@champion", 2), serving("credit/2", 2)]).await;

    let first = of(&world, Of::Version(VersionName { model: "credit".into(), version: 1 })).await.unwrap();
    let made_by = first.run.unwrap();
    assert_eq!((&made_by.run_id, &*made_by.name, &*made_by.status), (&run, "grid", "RUNNING"));
    assert_eq!((&*made_by.datasets[0].name, &*made_by.datasets[0].context), ("loans", "training"));
    let names: Vec<_> = first.versions.iter().map(|v| (&*v.model, v.version)).collect();
    assert_eq!(names, [("credit", 1), ("credit-eu", 1)], "itself and its copy");
    let told: Vec<_> = first.versions[0].deployments.iter().map(|d| (&*d.deployment, d.state())).collect();
    assert_eq!(told, [("b:1", DeploymentState::Serving), ("a:1", DeploymentState::Ended)]);

    let whole = of(&world, Of::RunId(run)).await.unwrap();
    let names: Vec<_> = whole.versions.iter().map(|v| (&*v.model, v.version, v.deployments.len())).collect();
    assert_eq!(names, [("credit", 1, 2), ("credit", 2, 2)]);
    assert_eq!(reason(of(&world, Of::RunId("f".repeat(32))).await), "RUN_NOT_FOUND");

    let serving_now = listed(&world, false, 1).await;
    let told: Vec<_> = serving_now.iter().map(|d| (&*d.deployment, &*d.reference, d.version)).collect();
    assert_eq!(told, [("a:1", "credit@champion", 2), ("b:1", "credit@champion", 1), ("a:1", "credit/2", 2)]);
    assert_eq!(listed(&world, true, 2).await.len(), 4);
    report(&world, "a:1", Vec::new()).await;
    assert_eq!(listed(&world, false, 100).await.len(), 1);

    let twice = vec![serving("x", 1), serving("x", 2)];
    let refused = ReportDeploymentRequest { deployment: "c".into(), serving: twice, lease_seconds: 0 };
    assert_eq!(reason(lineage(&world).report_deployment(refused).await), "INVALID_REPORT");
    let refused = ReportDeploymentRequest { deployment: "c".into(), serving: Vec::new(), lease_seconds: 5 };
    assert_eq!(reason(lineage(&world).report_deployment(refused).await), "INVALID_LEASE");
    world.stop().await;
}
