//! Routes on the wire.

use prost_types::Duration;
use verdict_api::predict as api;
use verdict_chassis::status::Field;

use super::timestamp;
use crate::{
    error::{Error, Result},
    reference::Reference,
    routes::{
        Challenger, Guard, Route, Shadow, Stopped,
        board::{Live, Target},
        saved::Kept,
        shadow::{Pair, RECENT, Seen, ShadowTarget},
    },
};

const USUAL_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
const USUAL_PAIRS: usize = 20;

/// Checks a reference.
pub fn reference(field: &str, text: &str) -> Result<Reference> {
    text.parse().map_err(|problem: String| Error::field(field, format!("is wrong: {problem}")))
}

/// Takes a route that is to be set; what it says is checked where it is set.
pub fn route(route: api::Route) -> Result<(Route, String)> {
    let api::Route { name, champion, challengers, shadows, guard, create_time: _, update_time: _, etag } = route;
    let mut problems = Vec::new();
    let mut reference = |field: String, text: &str| match text.parse::<Reference>() {
        Ok(reference) => Some(reference),
        Err(problem) => {
            problems.push(Field { field: format!("route.{field}"), problem: format!("is wrong: {problem}") });
            None
        }
    };
    let champion = reference("champion".to_owned(), &champion);
    let challengers: Vec<_> = challengers
        .into_iter()
        .enumerate()
        .filter_map(|(index, api::Challenger { reference: text, weight, stopped_reason: _, stop_time: _ })| {
            let reference = reference(format!("challengers[{index}].reference"), &text)?;
            Some(Challenger { reference, weight, stopped: None })
        })
        .collect();
    let shadows: Vec<_> = shadows
        .into_iter()
        .enumerate()
        .filter_map(|(index, api::Shadow { reference: text, share })| {
            let reference = reference(format!("shadows[{index}].reference"), &text)?;
            Some(Shadow { reference, share: share.unwrap_or(1.0) })
        })
        .collect();
    let guard = guard.map(self::guard);
    match champion {
        Some(champion) if problems.is_empty() => Ok((Route { name, champion, challengers, shadows, guard }, etag)),
        Some(_) | None => Err(Error::Invalid(problems)),
    }
}

fn guard(guard: api::Guard) -> Guard {
    let api::Guard {
        window,
        min_calls,
        max_error_rate_increase,
        max_latency_p99,
        max_latency_p99_ratio,
        max_score_shift,
    } = guard;
    let usual = Guard::default();
    let window = if window == 0 { usual.window } else { window as usize };
    let min_calls = if min_calls == 0 { usual.min_calls.min(window) } else { min_calls as usize };
    #[expect(clippy::cast_precision_loss, reason = "seconds of a limit")]
    let millis = |Duration { seconds, nanos }: Duration| seconds as f64 * 1e3 + f64::from(nanos) / 1e6;
    Guard {
        window,
        min_calls,
        max_error_rate_increase,
        max_latency_p99_ms: max_latency_p99.map(millis),
        max_latency_p99_ratio,
        max_score_shift,
    }
}

/// Checks a page of routes: how many, and after which name.
pub fn page(page_size: i32, page_token: &str) -> Result<(usize, String)> {
    let size = match usize::try_from(page_size) {
        Ok(0) => USUAL_PAGE,
        Ok(size) if size <= MAX_PAGE => size,
        Ok(_) | Err(_) => {
            return Err(Error::field("page_size", format!("is {page_size}: 1 to {MAX_PAGE}, or 0 for {USUAL_PAGE}")));
        }
    };
    if !page_token.is_empty() && !crate::routes::is_route_name(page_token) {
        let problem = "is not one this call answered: take next_page_token as it is, or leave it empty";
        return Err(Error::field("page_token", problem));
    }
    Ok((size, page_token.to_owned()))
}

/// Checks how many pairs are asked for.
pub fn pairs(recent_pairs: u32) -> Result<usize> {
    match recent_pairs as usize {
        0 => Ok(USUAL_PAIRS),
        pairs if pairs <= RECENT => Ok(pairs),
        pairs => Err(Error::field("recent_pairs", format!("is {pairs}: at most {RECENT}, or 0 for {USUAL_PAIRS}"))),
    }
}

/// Writes a route.
pub fn standing(kept: Kept) -> api::Route {
    let Kept { route, created, updated, etag, configured: _ } = kept;
    let Route { name, champion, challengers, shadows, guard } = route;
    let challenger = |Challenger { reference, weight, stopped }| {
        let (stopped_reason, stop_time) = match stopped {
            Some(Stopped { reason, time }) => (reason, Some(timestamp(time))),
            None => (String::new(), None),
        };
        api::Challenger { reference: reference.to_string(), weight, stopped_reason, stop_time }
    };
    let shadow =
        |Shadow { reference, share }: Shadow| api::Shadow { reference: reference.to_string(), share: Some(share) };
    api::Route {
        name,
        champion: champion.to_string(),
        challengers: challengers.into_iter().map(challenger).collect(),
        shadows: shadows.into_iter().map(shadow).collect(),
        guard: guard.map(limits),
        create_time: Some(timestamp(created)),
        update_time: Some(timestamp(updated)),
        etag,
    }
}

fn limits(guard: Guard) -> api::Guard {
    let Guard {
        window,
        min_calls,
        max_error_rate_increase,
        max_latency_p99_ms,
        max_latency_p99_ratio,
        max_score_shift,
    } = guard;
    #[expect(clippy::cast_possible_truncation, reason = "a limit in seconds and a part of one")]
    let duration = |millis: f64| {
        let seconds = (millis / 1e3).floor();
        Duration { seconds: seconds as i64, nanos: ((millis - seconds * 1e3) * 1e6) as i32 }
    };
    api::Guard {
        window: super::number(window),
        min_calls: super::number(min_calls),
        max_error_rate_increase,
        max_latency_p99: max_latency_p99_ms.map(duration),
        max_latency_p99_ratio,
        max_score_shift,
    }
}

/// Writes how the targets of a route do, with at most `pairs` pairs of each shadow.
pub fn report(live: &Live, pairs: usize) -> api::GetRouteReportResponse {
    let route = &live.kept.route;
    let champion = target(&live.champion, route.champion_weight(), "");
    let challengers = live.challengers.iter().zip(&route.challengers);
    let challengers = challengers.map(|(challenger, set)| {
        target(challenger, set.weight, set.stopped.as_ref().map_or("", |stopped| stopped.reason.as_str()))
    });
    api::GetRouteReportResponse {
        route: Some(standing(live.kept.clone())),
        targets: std::iter::once(champion).chain(challengers).collect(),
        shadows: live.shadows.iter().map(|target| shadow(target, pairs)).collect(),
    }
}

fn target(target: &Target, weight: f64, stopped_reason: &str) -> api::TargetReport {
    let passed_over = target.passed_over();
    target.look(|window| api::TargetReport {
        reference: target.name.clone(),
        weight,
        calls: window.total,
        failed: window.total_failed,
        passed_over,
        window_calls: super::number(window.len()),
        error_rate: window.error_rate(),
        latency_p50_ms: window.latency(50.0).as_secs_f64() * 1e3,
        latency_p99_ms: window.latency(99.0).as_secs_f64() * 1e3,
        mean_score: window.mean_score(),
        stopped_reason: stopped_reason.to_owned(),
    })
}

fn shadow(target: &ShadowTarget, pairs: usize) -> api::ShadowReport {
    let seen = target.seen();
    let [p50, p90, p99] = seen.quantiles([0.5, 0.9, 0.99]);
    let (mean_absolute_difference, mean_difference) = (seen.mean_absolute(), seen.mean());
    let Seen { copied, dropped, failed, compared, differences, max_absolute, recent, last_failure, .. } = seen;
    api::ShadowReport {
        reference: target.reference.to_string(),
        copied,
        dropped,
        failed,
        compared,
        differences,
        mean_absolute_difference,
        max_absolute_difference: max_absolute,
        mean_difference,
        absolute_difference_p50: p50,
        absolute_difference_p90: p90,
        absolute_difference_p99: p99,
        recent: recent.into_iter().rev().take(pairs).map(pair).collect(),
        last_failure,
    }
}

fn pair(pair: Pair) -> api::ShadowPair {
    let Pair { time, primary, difference } = pair;
    let (primary_score, shadow_score) = difference.scores.unzip();
    api::ShadowPair {
        time: Some(timestamp(time)),
        primary,
        primary_score: primary_score.map(f64::from),
        shadow_score: shadow_score.map(f64::from),
        absolute_difference: difference.signed.abs(),
        index: difference.index,
    }
}
