//! Amounts of resources. Pure.

use std::collections::BTreeMap;

use crate::schema::quantity::Quantity;

/// What a container that asks for nothing is taken to use, for scores.
const CPU_MILLI_DEFAULT: i64 = 100;
const MEMORY_DEFAULT: i64 = 200 << 20;

/// Amounts by resource: CPU in thousandths, all else in units or bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of local disk.
    pub ephemeral_storage: i64,
    /// Everything else by name, `pods` left out.
    pub other: BTreeMap<String, i64>,
    /// Pods, where this is what a node offers.
    pub pods: i64,
}

impl Resources {
    /// Reads a resource list; what is no quantity counts as nothing.
    pub fn parse(list: &BTreeMap<String, String>) -> Self {
        let mut sum = Self::default();
        for (name, text) in list {
            let Ok(amount) = text.parse::<Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => sum.cpu_milli = amount.milli_value(),
                "memory" => sum.memory = amount.value(),
                "ephemeral-storage" => sum.ephemeral_storage = amount.value(),
                "pods" => sum.pods = amount.value(),
                _ => drop(sum.other.insert(name.clone(), amount.value())),
            }
        }
        sum
    }

    fn each(&mut self, other: &Self, change: impl Fn(&mut i64, i64)) {
        change(&mut self.cpu_milli, other.cpu_milli);
        change(&mut self.memory, other.memory);
        change(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.other {
            change(self.other.entry(name.clone()).or_default(), *amount);
        }
    }
}

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What it asks for.
    pub requests: Resources,
    /// The same for scores: containers that ask for nothing count a little.
    pub scored_cpu_milli: i64,
    /// As above, bytes of memory.
    pub scored_memory: i64,
}

impl Usage {
    /// Of one container's requests.
    pub fn of_container(requests: &BTreeMap<String, String>) -> Self {
        let amounts = Resources::parse(requests);
        let or = |name: &str, asked: i64, default| {
            if requests.contains_key(name) {
                asked
            } else {
                default
            }
        };
        Self {
            scored_cpu_milli: or("cpu", amounts.cpu_milli, CPU_MILLI_DEFAULT),
            scored_memory: or("memory", amounts.memory, MEMORY_DEFAULT),
            requests: amounts,
        }
    }

    /// Puts what a pod as a whole asks for in place of its containers' sums.
    pub fn replace(&mut self, requests: &BTreeMap<String, String>) {
        let amounts = Resources::parse(requests);
        for name in requests.keys() {
            match name.as_str() {
                "cpu" => {
                    self.requests.cpu_milli = amounts.cpu_milli;
                    self.scored_cpu_milli = amounts.cpu_milli;
                }
                "memory" => {
                    self.requests.memory = amounts.memory;
                    self.scored_memory = amounts.memory;
                }
                name if name.starts_with("hugepages-") => {
                    let amount = amounts.other.get(name).copied().unwrap_or(0);
                    self.requests.other.insert(name.to_owned(), amount);
                }
                _ => {}
            }
        }
    }

    /// Of amounts that are what they are.
    pub fn exactly(requests: Resources) -> Self {
        Self {
            scored_cpu_milli: requests.cpu_milli,
            scored_memory: requests.memory,
            requests,
        }
    }

    fn each(&mut self, other: &Self, change: impl Fn(&mut i64, i64)) {
        self.requests.each(&other.requests, &change);
        change(&mut self.scored_cpu_milli, other.scored_cpu_milli);
        change(&mut self.scored_memory, other.scored_memory);
    }

    /// Adds.
    pub fn add(&mut self, other: &Self) {
        self.each(other, |a, b| *a = a.saturating_add(b));
    }

    /// Takes away what was added.
    pub fn subtract(&mut self, other: &Self) {
        self.each(other, |a, b| *a = a.saturating_sub(b));
    }

    /// The larger of both, amount by amount.
    pub fn raise_to(&mut self, other: &Self) {
        self.each(other, |a, b| *a = (*a).max(b));
    }
}
