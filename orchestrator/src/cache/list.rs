//! Lists: a page of a resource at one revision.
//!
//! Later pages show the state of the first page's revision. There is no
//! history on disk; the ring is walked backwards to undo what has happened
//! since, and where the ring no longer reaches, the list has expired.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::{Entry, Expired, ResourceCache, Revision, Selector, State};

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only this namespace; all if `None`.
    pub namespace: Option<String>,
    /// Which objects.
    pub selector: Selector,
    /// At most this many; 0 is all.
    pub limit: usize,
    /// Only keys after this one.
    pub after: Option<String>,
    /// The state at this revision; the newest if `None`.
    pub at: Option<Revision>,
}

/// Part of a list.
#[derive(Debug)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Arc<Entry>>,
    /// The state's revision: a watch from here misses nothing.
    pub revision: Revision,
    /// The last key, if there is more.
    pub more_after: Option<Arc<str>>,
    /// Objects behind this page, if that is known (no selector).
    pub remaining: Option<usize>,
}

impl ResourceCache {
    /// One page.
    ///
    /// # Errors
    /// [`Expired`] if the ring does not reach back to `query.at`.
    pub fn list(&self, query: &Query) -> Result<Page, Expired> {
        // Before the lock: every event up to here is in the state. Later ones
        // may be there in part (a batch shares one revision) and are undone.
        let mut published = *self.published.borrow();
        let mut state = self.read();
        if state.ring.after(published).is_err() {
            // Overtaken by more than a whole ring between the two lines above.
            drop(state);
            published = *self.published.borrow();
            state = self.read();
        }
        let revision = query.at.unwrap_or(published);
        let undone = if revision < state.ring.newest() {
            self.undo(&state, revision)?
        } else {
            BTreeMap::new()
        };
        let (from, prefix) = bounds(query);
        let current = state.objects.range::<str, _>((from, Bound::Unbounded));
        let merged = Merge {
            current: current.peekable(),
            undone: undone.range::<str, _>((from, Bound::Unbounded)).peekable(),
        };
        let mut page = Page {
            entries: Vec::new(),
            revision,
            more_after: None,
            remaining: None,
        };
        let mut behind = 0;
        for entry in merged {
            if let Some(prefix) = &prefix
                && !entry.key.starts_with(&**prefix)
            {
                break;
            }
            if query.limit > 0 && page.entries.len() == query.limit {
                page.more_after = page.entries.last().map(|last| Arc::clone(&last.key));
                if !query.selector.is_everything() {
                    break;
                }
                behind += 1;
                continue;
            }
            if query.selector.matches(entry) {
                page.entries.push(Arc::clone(entry));
            }
        }
        if page.more_after.is_some() && query.selector.is_everything() {
            page.remaining = Some(behind);
        }
        Ok(page)
    }

    /// What the keys that changed after `at` were then; `None` is absent.
    fn undo(
        &self,
        state: &State,
        at: Revision,
    ) -> Result<BTreeMap<Arc<str>, Option<Arc<Entry>>>, Expired> {
        let mut undone = BTreeMap::new();
        for event in state.ring.after(at)?.rev() {
            undone.insert(Arc::clone(&event.entry.key), event.previous.clone());
        }
        tracing::trace!(
            resource = self.resource.key,
            undone = undone.len(),
            "list at {at}"
        );
        Ok(undone)
    }
}

fn bounds(query: &Query) -> (Bound<&str>, Option<String>) {
    let prefix = query
        .namespace
        .as_ref()
        .map(|namespace| format!("{namespace}/"));
    let from = match (&query.after, &query.namespace) {
        (Some(after), _) => Bound::Excluded(after.as_str()),
        // `ns` sorts directly before `ns/`.
        (None, Some(namespace)) => Bound::Excluded(namespace.as_str()),
        (None, None) => Bound::Unbounded,
    };
    (from, prefix)
}

/// The current state with some keys replaced by what they were.
struct Merge<'a, C, U>
where
    C: Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)>,
    U: Iterator<Item = (&'a Arc<str>, &'a Option<Arc<Entry>>)>,
{
    current: std::iter::Peekable<C>,
    undone: std::iter::Peekable<U>,
}

impl<'a, C, U> Iterator for Merge<'a, C, U>
where
    C: Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)>,
    U: Iterator<Item = (&'a Arc<str>, &'a Option<Arc<Entry>>)>,
{
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((changed, _)) = self.undone.peek() else {
                return self.current.next().map(|(_, entry)| entry);
            };
            match self.current.peek() {
                Some((key, _)) if key < changed => {
                    return self.current.next().map(|(_, entry)| entry);
                }
                Some((key, _)) if key == changed => drop(self.current.next()),
                _ => {}
            }
            if let Some((_, Some(entry))) = self.undone.next() {
                return Some(entry);
            }
        }
    }
}
