//! Built binaries as children of a test.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::net;

const POLL: Duration = Duration::from_millis(20);
const LOG_TAIL: usize = 8000;

/// Returns the path of a binary of this workspace, built into the directory this test was built into.
///
/// For the tests of another package than the binary's own, which has `env!("CARGO_BIN_EXE_name")`.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let path = test.ancestors().nth(2).expect("a target directory").join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --bin {name}`", path.display());
    path
}

/// A running process. Dropped, it is killed; dropped by a failing test, the end of its log is printed first.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    name: String,
    log: PathBuf,
    _dir: TempDir,
}

impl Child {
    /// Starts `binary`; what it writes to standard output and error goes to its log.
    ///
    /// It inherits this process's environment but for `RUST_LOG`, `OTEL_*`, `DATABASE_URL` and `ARTIFACT_STORE`, and
    /// then gets `env`.
    pub fn spawn<K, V>(binary: &Path, args: &[&str], env: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let dir = tempfile::tempdir().expect("a directory for the log");
        let log = dir.path().join("log");
        let output = std::fs::File::create(&log).expect("a log file");
        let mut command = Command::new(binary);
        for (name, _) in std::env::vars_os() {
            let known = name.to_string_lossy();
            if known.starts_with("OTEL_") || ["RUST_LOG", "DATABASE_URL", "ARTIFACT_STORE"].contains(&&*known) {
                command.env_remove(name);
            }
        }
        let child = command
            .args(args)
            .envs(env)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle of the log file"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {}: {error}", binary.display()));
        let name = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { child, name, log, _dir: dir }
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until something listens on `address`; panics with its log when it ends before, or when `timeout` passes.
    pub async fn wait_listening(&mut self, address: SocketAddr, timeout: Duration) {
        let met = async || TcpStream::connect(address).await.is_ok();
        self.wait_until(&format!("nothing listens on {address}"), timeout, met).await;
    }

    /// Waits until `/readyz` on the admin `address` answers 200; panics like [`Child::wait_listening`].
    pub async fn wait_ready(&mut self, admin: SocketAddr, timeout: Duration) {
        let met = async || net::get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200);
        self.wait_until(&format!("/readyz on {admin} is not 200"), timeout, met).await;
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Sends SIGTERM and waits until it is gone; panics with its log when `timeout` passes.
    pub async fn terminate(&mut self, timeout: Duration) -> ExitStatus {
        // The shell's own kill: there is no other way to send a signal without unsafe code.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.pid())).status();
        assert!(sent.is_ok_and(|status| status.success()), "can't send SIGTERM to {}", self.pid());
        self.wait(timeout).await
    }

    /// Waits until it ends; panics with its log when `timeout` passes.
    pub async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let until = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < until, "{} still runs after {timeout:?}; its log:\n{}", self.name, self.tail());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_until(&mut self, problem: &str, timeout: Duration, met: impl AsyncFn() -> bool) {
        let until = Instant::now() + timeout;
        while !met().await {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                panic!("{} ended with {status}; its log:\n{}", self.name, self.tail());
            }
            assert!(Instant::now() < until, "{problem} after {timeout:?}; the log of {}:\n{}", self.name, self.tail());
            tokio::time::sleep(POLL).await;
        }
    }

    fn tail(&self) -> String {
        let log = self.log();
        log[log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL))..].to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {} (pid {})\n{}", self.name, self.pid(), self.tail());
        }
        // It may be gone already: then both have nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Child::spawn(Path::new("/bin/sh"), &["-c", script], [("GREETING", "hello")])
    }

    #[tokio::test]
    async fn a_child_gets_its_environment_and_its_output_is_kept() {
        let mut child = shell("echo $GREETING; echo oops >&2; exit 3");
        assert_eq!(child.wait(Duration::from_secs(10)).await.code(), Some(3));
        assert_eq!(child.log(), "hello\noops\n");
    }

    #[tokio::test]
    async fn sigterm_reaches_the_child() {
        let mut child = shell("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done");
        while child.log().is_empty() {
            tokio::time::sleep(POLL).await;
        }
        assert_eq!(child.terminate(Duration::from_secs(10)).await.code(), Some(7));
    }

    #[tokio::test]
    #[should_panic(expected = "ended with exit status: 4")]
    async fn waiting_for_a_child_that_ends_shows_why() {
        let mut child = shell("echo broken; exit 4");
        let nobody = SocketAddr::from(([127, 0, 0, 1], net::free_port()));
        child.wait_listening(nobody, Duration::from_secs(10)).await;
    }
}
