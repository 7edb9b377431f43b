//! Whether rag can serve: predict and the index are asked, and one bad answer alone changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use verdict_chassis::health::Health;

use crate::SERVICE;
use crate::index::Index;
use crate::models::Models;

/// How often it is asked while it serves, and while it doesn't.
const EVERY: Duration = Duration::from_secs(5);
const WHILE_DOWN: Duration = Duration::from_millis(500);
/// An answer that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(3);
/// As many bad answers in a row end serving; one good answer begins it.
const BAD_IN_A_ROW: u32 = 3;

/// Asks until `stop`, and keeps `health` up to date.
pub(crate) async fn run(index: Arc<dyn Index>, models: Models, health: Health, stop: CancellationToken) {
    let mut serving = false;
    let mut bad = 0;
    let mut last = String::new();
    loop {
        let asked = async {
            models.probe().await?;
            index.probe().await
        };
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = tokio::time::timeout(PATIENCE, asked) => answer,
        };
        let problem = match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        bad = if problem.is_some() { bad + 1 } else { 0 };
        let now = if serving { bad < BAD_IN_A_ROW } else { bad == 0 };
        let why = problem.unwrap_or_else(|| "models and index answer".to_owned());
        if now != serving || (!now && why != last) {
            tracing::info!(serving = now, "{why}");
            health.set(SERVICE, now, why.clone());
        }
        (serving, last) = (now, why);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if serving && bad == 0 { EVERY } else { WHILE_DOWN }) => {}
        }
    }
}
