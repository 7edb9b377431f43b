//! The pages of a list: one after the other, to the last.

use super::{Failure, Found};

/// Where a list is being read.
pub(super) struct Pages {
    list: &'static str,
    token: String,
    /// A token from before, taken anew after 1, 2, 4, … pages: whatever goes round in a circle comes by it again.
    before: String,
    since: u64,
    until: u64,
}

impl Pages {
    /// Begins a list, which `list` names.
    pub(super) fn of(list: &'static str) -> Self {
        Self { list, token: String::new(), before: String::new(), since: 0, until: 1 }
    }

    /// What to ask the next page with; empty for the first.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// Goes on to the page that `next` names; false when there is none. Fails when the pages lead back to where they were.
    pub(super) fn go_on(&mut self, next: String) -> Found<bool> {
        if next.is_empty() {
            return Ok(false);
        }
        if next == self.before {
            let Self { list, .. } = self;
            let token: String = next.chars().take(100).collect();
            return Err(Failure::item(format!(
                "the pages of {list} have no end: the server answers the page token `{token}` again"
            )));
        }
        self.since += 1;
        if self.since == self.until {
            (self.since, self.until) = (0, self.until.saturating_mul(2));
            self.before.clone_from(&next);
        }
        self.token = next;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_where_the_list_does() {
        let mut pages = Pages::of("runs");
        for page in 0..1000 {
            assert!(matches!(pages.go_on(page.to_string()), Ok(true)));
            assert_eq!(pages.token(), page.to_string());
        }
        assert!(matches!(pages.go_on(String::new()), Ok(false)));
    }

    #[test]
    fn pages_that_lead_back_are_found_out_however_far() {
        for (straight, circle) in [(0, 1), (0, 2), (1, 1), (7, 3), (100, 17)] {
            let mut pages = Pages::of("runs");
            let token =
                |at: usize| if at < straight { format!("s{at}") } else { format!("c{}", (at - straight) % circle) };
            let refused = (0..1000).find_map(|at| pages.go_on(token(at)).err());
            let Some(Failure::Item { why, .. }) = refused else { panic!("{straight}, {circle}") };
            assert!(why.contains("the pages of runs have no end") && why.contains("`c"), "{why}");
        }
    }
}
