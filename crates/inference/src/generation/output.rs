//! From token bytes to text that can be shown: whole characters, and nothing that a stop string may yet take back.

/// Text held back until it is certain.
pub(super) struct Output {
    stop: Vec<String>,
    /// Bytes of an incomplete character.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl Output {
    pub(super) fn new(stop: Vec<String>) -> Self {
        Self { stop, bytes: Vec::new(), held: String::new() }
    }

    /// Adds the bytes of a token. Returns the text that is now certain and whether a stop string ends it; bytes that
    /// are no UTF-8 become U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (String, bool) {
        self.bytes.extend_from_slice(bytes);
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    let skipped = error.error_len();
                    self.bytes.drain(..valid + skipped.unwrap_or(0));
                    if skipped.is_none() {
                        break;
                    }
                    self.held.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        if let Some(at) = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.bytes.clear();
            return (std::mem::take(&mut self.held), true);
        }
        let certain = self.held.len() - self.stop.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, now that nothing follows.
    pub(super) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.bytes)));
        text
    }
}

/// The length of the longest end of `text` that `stop` begins with.
fn begun(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(end, _)| end).filter(|end| *end <= text.len());
    ends.filter(|end| text.as_bytes().ends_with(&stop.as_bytes()[..*end])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_appears_when_its_last_byte_does() {
        let mut output = Output::new(Vec::new());
        let [a, b, c, d] = <[u8; 4]>::try_from("🙂".as_bytes()).unwrap();
        assert_eq!(output.push(&[b'x', a]), ("x".to_owned(), false));
        assert_eq!(output.push(&[b, c]), (String::new(), false));
        assert_eq!(output.push(&[d, b'!']), ("🙂!".to_owned(), false));
        assert_eq!(output.push(&[a, b'?']), ("\u{fffd}?".to_owned(), false));
        output.push(&[a, b]);
        assert_eq!(output.finish(), "\u{fffd}");
    }

    #[test]
    fn the_first_stop_string_ends_the_text_and_is_not_part_of_it() {
        let mut output = Output::new(vec!["\nUser".to_owned(), "END".to_owned()]);
        assert_eq!(output.push(b"fine\nUs"), ("fine".to_owned(), false));
        assert_eq!(output.push(b"age EN"), ("\nUsage ".to_owned(), false));
        assert_eq!(output.push(b"D\nUser"), (String::new(), true));
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_text_is_the_same(
            text in "[abé🙂]{0,24}",
            stop in proptest::option::of("[abé🙂]{1,4}"),
            cuts in proptest::collection::vec(1usize..6, 1..40),
        ) {
            let expected = stop.as_ref().and_then(|stop| text.find(stop.as_str()));
            let mut output = Output::new(stop.into_iter().collect());
            let (mut shown, mut stopped, mut rest) = (String::new(), false, text.as_bytes());
            for cut in cuts.into_iter().cycle() {
                if stopped || rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(cut.min(rest.len()));
                let (new, ended) = output.push(now);
                shown.push_str(&new);
                (rest, stopped) = (later, ended);
            }
            if !stopped {
                shown.push_str(&output.finish());
            }
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(shown, &text[..expected.unwrap_or(text.len())]);
        }
    }
}
