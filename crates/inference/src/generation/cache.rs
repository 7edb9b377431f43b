//! Keys and values of what was read: pages of 32 positions, bounded in number, shared by texts that begin alike.
//!
//! A page is filled once and never changed after that, so any number of texts may use it. Full pages are found again by
//! what they hold: the page before them and their own tokens, compared in full. Pages nobody uses stay until their room is
//! needed, the longest unused first.

use std::collections::{BTreeMap, HashMap};

use half::{f16, slice::HalfFloatSliceExt};

/// Positions in a page.
pub(super) const PAGE: usize = 32;

/// What the keys and values of one position are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
}

/// A page and the tokens after it.
type Key = (u64, [u32; PAGE]);

#[derive(Default)]
struct Page {
    /// For each layer and key head: keys with the positions side by side, `[head][PAGE]`, then values, `[PAGE][head]`.
    data: Vec<f16>,
    users: usize,
    /// Never given twice: stands for this content and all that is before it.
    serial: u64,
    key: Option<Key>,
    last_used: u64,
}

/// The pages of all texts.
pub(super) struct Pool {
    shape: Shape,
    most: usize,
    pages: Vec<Page>,
    free: Vec<usize>,
    used: usize,
    /// Promised to texts that have not filled them yet.
    promised: usize,
    full: HashMap<Key, usize>,
    idle: BTreeMap<u64, usize>,
    clock: u64,
}

/// The pages of one text, in order.
#[derive(Debug, Default)]
pub(super) struct Table {
    pages: Vec<usize>,
    promised: usize,
    /// Pages found or entered among the full ones.
    entered: usize,
}

impl Table {
    pub(super) fn pages(&self) -> &[usize] {
        &self.pages
    }
}

impl Pool {
    /// Room for `positions`, rounded up to pages; memory is taken when a page is first filled.
    pub(super) fn new(shape: Shape, positions: usize) -> Self {
        Self {
            shape,
            most: positions.div_ceil(PAGE),
            pages: Vec::new(),
            free: Vec::new(),
            used: 0,
            promised: 0,
            full: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The most positions one text can have.
    pub(super) fn positions(&self) -> usize {
        self.most * PAGE
    }

    /// Opens a text of at most `positions` that begins with `prompt`: finds the pages that already hold its beginning and
    /// promises the others. Returns the positions found, always fewer than the prompt has; `None` if there is no room now.
    pub(super) fn open(&mut self, prompt: &[u32], positions: usize, reuse: bool) -> Option<(Table, usize)> {
        let mut found = Vec::new();
        if reuse {
            let mut before = 0;
            for tokens in prompt[..prompt.len() - 1].as_chunks::<PAGE>().0 {
                let Some(page) = self.full.get(&(before, *tokens)) else { break };
                before = self.pages[*page].serial;
                found.push(*page);
            }
        }
        let promised = positions.div_ceil(PAGE).saturating_sub(found.len());
        let woken = found.iter().filter(|page| self.pages[**page].users == 0).count();
        if self.used + self.promised + woken + promised > self.most {
            return None;
        }
        for page in &found {
            let page = &mut self.pages[*page];
            if page.users == 0 {
                self.idle.remove(&page.last_used);
                self.used += 1;
            }
            page.users += 1;
        }
        self.promised += promised;
        let entered = found.len();
        Some((Table { pages: found, promised, entered }, entered * PAGE))
    }

    /// Makes room for the positions up to `end` of a text; no more than was promised.
    pub(super) fn extend(&mut self, table: &mut Table, end: usize) {
        while table.pages.len() * PAGE < end {
            let page = self.take();
            table.promised = table.promised.saturating_sub(1);
            self.promised = self.promised.saturating_sub(1);
            self.used += 1;
            table.pages.push(page);
        }
    }

    fn take(&mut self) -> usize {
        let page = self.free.pop().unwrap_or_else(|| {
            if self.pages.len() < self.most {
                let size = self.shape.layers * self.shape.kv_heads * self.shape.head * 2 * PAGE;
                self.pages.push(Page { data: vec![f16::ZERO; size], ..Page::default() });
                return self.pages.len() - 1;
            }
            let (_, page) = self.idle.pop_first().expect("`open` promises no more pages than there are");
            self.forget(page);
            page
        });
        self.clock += 1;
        let page_now = &mut self.pages[page];
        (page_now.users, page_now.serial) = (1, self.clock);
        page
    }

    fn forget(&mut self, page: usize) {
        if let Some(key) = self.pages[page].key.take() {
            self.full.remove(&key);
        }
    }

    /// Enters the pages that `tokens`, all that was read of a text so far, have filled, so that others find them.
    pub(super) fn enter(&mut self, table: &mut Table, tokens: &[u32]) {
        for (index, tokens) in tokens.as_chunks::<PAGE>().0.iter().enumerate().skip(table.entered) {
            let before = index.checked_sub(1).map_or(0, |index| self.pages[table.pages[index]].serial);
            let page = table.pages[index];
            // Two texts may have read the same at the same time; the first is found from now on.
            self.full.entry((before, *tokens)).or_insert_with(|| {
                self.pages[page].key = Some((before, *tokens));
                page
            });
            table.entered = index + 1;
        }
    }

    /// Gives the pages of a text back. Those others may find again stay; the end of a text goes before its beginning.
    pub(super) fn close(&mut self, table: Table) {
        self.promised -= table.promised;
        for page in table.pages.into_iter().rev() {
            self.pages[page].users -= 1;
            if self.pages[page].users > 0 {
                continue;
            }
            self.used -= 1;
            if self.pages[page].key.is_some() {
                self.clock += 1;
                self.pages[page].last_used = self.clock;
                self.idle.insert(self.clock, page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// Where keys and values of a layer's key head begin in a page.
    fn offset(&self, layer: usize, kv_head: usize) -> usize {
        (layer * self.shape.kv_heads + kv_head) * 2 * PAGE * self.shape.head
    }

    /// Remembers keys and values of all heads at a position that `extend` made room for.
    pub(super) fn put(&mut self, table: &Table, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let (head, slot) = (self.shape.head, position % PAGE);
        let heads = keys.chunks_exact(head).zip(values.chunks_exact(head));
        for (kv_head, (key, value)) in heads.enumerate() {
            let offset = self.offset(layer, kv_head);
            let data = &mut self.pages[table.pages[position / PAGE]].data[offset..offset + 2 * PAGE * head];
            let (key_data, value_data) = data.split_at_mut(PAGE * head);
            for (column, key) in key_data.chunks_exact_mut(PAGE).zip(key) {
                column[slot] = f16::from_f32(*key);
            }
            value_data[slot * head..(slot + 1) * head].convert_from_f32_slice(value);
        }
    }

    /// Keys `[head][PAGE]` and values `[PAGE][head]` of a page.
    pub(super) fn get(&self, page: usize, layer: usize, kv_head: usize) -> (&[f16], &[f16]) {
        let (offset, size) = (self.offset(layer, kv_head), PAGE * self.shape.head);
        let data = &self.pages[page].data[offset..offset + 2 * size];
        data.split_at(size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHAPE: Shape = Shape { layers: 1, kv_heads: 1, head: 16 };

    fn read(pool: &mut Pool, tokens: &[u32]) -> Option<(Table, usize)> {
        let (mut table, found) = pool.open(tokens, tokens.len(), true)?;
        pool.extend(&mut table, tokens.len());
        pool.enter(&mut table, tokens);
        Some((table, found))
    }

    fn text(start: u32, length: usize) -> Vec<u32> {
        (0..length as u32).map(|index| start + index).collect()
    }

    #[test]
    fn a_text_finds_the_full_pages_it_shares_and_computes_at_least_one_token() {
        let mut pool = Pool::new(SHAPE, 320);
        let (first, found) = read(&mut pool, &text(0, 96)).unwrap();
        assert_eq!(found, 0);
        // The whole text is there, but its last token must be read for what follows it.
        let (same, found) = read(&mut pool, &text(0, 96)).unwrap();
        assert_eq!((found, &same.pages()[..2]), (64, &first.pages()[..2]));
        let (longer, found) = read(&mut pool, &text(0, 97)).unwrap();
        assert_eq!(found, 96);
        pool.close(longer);
        let (other, found) = read(&mut pool, &[text(0, 32), text(7, 33)].concat()).unwrap();
        assert_eq!(found, 32);
        // The same tokens after another beginning are other keys and values.
        let (moved, found) = read(&mut pool, &text(32, 65)).unwrap();
        assert_eq!(found, 0);
        for table in [first, same, other, moved] {
            pool.close(table);
        }
        assert_eq!((pool.used, pool.promised), (0, 0));
    }

    #[test]
    fn the_longest_unused_pages_go_first_and_ends_before_beginnings() {
        let mut pool = Pool::new(SHAPE, 128);
        let (old, _) = read(&mut pool, &text(0, 64)).unwrap();
        pool.close(old);
        let (new, _) = read(&mut pool, &text(1000, 64)).unwrap();
        pool.close(new);
        let (third, _) = read(&mut pool, &text(2000, 32)).unwrap();
        pool.close(third);
        let (old, found) = pool.open(&text(0, 65), 65, true).unwrap();
        assert_eq!(found, 32, "the second page of the oldest text made room");
        pool.close(old);
        let (new, found) = pool.open(&text(1000, 65), 65, true).unwrap();
        assert_eq!(found, 64);
        pool.close(new);
    }

    proptest! {
        #[test]
        fn promises_are_kept_and_nothing_leaks(
            steps in proptest::collection::vec((0u32..3, 1usize..150, 1usize..90, any::<bool>()), 1..60),
        ) {
            let mut pool = Pool::new(SHAPE, 256);
            let mut open: Vec<Table> = Vec::new();
            for (start, length, more, close) in steps {
                let prompt = text(start * 1000, length);
                if let Some((mut table, found)) = pool.open(&prompt, length + more, true) {
                    prop_assert!(found < length && found % PAGE == 0);
                    let all = text(start * 1000, length + more);
                    pool.extend(&mut table, all.len());
                    pool.enter(&mut table, &all);
                    prop_assert_eq!(table.pages().len(), all.len().div_ceil(PAGE));
                    open.push(table);
                } else {
                    prop_assert!(!open.is_empty() || length + more > 256);
                }
                if close && !open.is_empty() {
                    let table = open.remove(0);
                    pool.close(table);
                }
                prop_assert!(pool.pages.len() <= pool.most);
            }
            for table in open {
                pool.close(table);
            }
            prop_assert_eq!((pool.used, pool.promised), (0, 0));
            prop_assert_eq!(pool.free.len() + pool.idle.len(), pool.pages.len());
            prop_assert!(pool.open(&[1], 256, true).is_some());
        }
    }
}
