//! How much two conditions on traces go together: normalized pointwise mutual information (NPMI).

use super::traces::Counts;

/// What Jeffreys' prior adds to each cell of the table.
const SMOOTHING: f64 = 0.5;

/// The NPMI of two conditions from -1 (never together) over 0 (independent) to 1 (always together), plain and smoothed.
///
/// None where it is not defined: one of the conditions never holds, or the counts contradict each other.
pub fn npmi(counts: Counts) -> (Option<f64>, Option<f64>) {
    let Counts { first, second, both, total } = counts;
    let cells = [both, first - both, second - both, total - first - second + both];
    if first == 0 || second == 0 || cells.iter().any(|cell| *cell < 0) {
        return (None, None);
    }
    let plain = if both == 0 { Some(-1.0) } else { of_cells(cells, 0.0) };
    (plain, of_cells(cells, SMOOTHING))
}

fn of_cells(cells: [i64; 4], smoothing: f64) -> Option<f64> {
    if cells[1..] == [0, 0, 0] {
        return Some(1.0);
    }
    let [both, only_first, only_second, neither] = cells.map(|cell| cell as f64 + smoothing);
    let (first, second) = (both + only_first, both + only_second);
    let total = both + only_first + only_second + neither;
    if first <= 0.0 || second <= 0.0 || both <= 0.0 {
        return None;
    }
    let information = both.ln() + total.ln() - first.ln() - second.ln();
    Some((information / (total.ln() - both.ln())).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: i64, second: i64, both: i64, total: i64) -> (Option<f64>, Option<f64>) {
        npmi(Counts { first, second, both, total })
    }

    #[test]
    fn conditions_go_together_always_never_or_by_chance() {
        assert_eq!(of(4, 4, 4, 4).0, Some(1.0));
        assert!((of(5, 5, 5, 10).0.unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(of(5, 5, 0, 10).0, Some(-1.0));
        assert!(of(50, 50, 25, 100).0.unwrap().abs() < 1e-9);
        let (plain, smoothed) = of(6, 7, 6, 10);
        assert!((0.6..0.8).contains(&plain.unwrap()) && smoothed.unwrap() < plain.unwrap());
    }

    #[test]
    fn what_never_holds_goes_together_with_nothing() {
        assert_eq!(of(0, 7, 0, 10), (None, None));
        assert_eq!(of(0, 0, 0, 0), (None, None));
        assert_eq!(of(9, 9, 1, 10), (None, None), "more than there are");
    }
}
