//! The arithmetic of a Deployment's rollout. Pure.
//!
//! Sizes are those of ReplicaSets: how many pods they are told to have and how
//! many of these are available. What a ReplicaSet reports may lag behind what
//! it was told; every step here is safe under that.

use jiff::Timestamp;
use serde_json::Value;

/// How far a rollout may stray from the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Pods wanted.
    pub replicas: i64,
    /// Pods above that.
    pub surge: i64,
    /// Pods below that.
    pub unavailable: i64,
}

/// A ReplicaSet as the arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pods it is told to have.
    pub replicas: i64,
    /// Available pods that it reports.
    pub available: i64,
    /// Birth.
    pub born: Timestamp,
    /// Most pods the Deployment was allowed when it was last scaled.
    pub allowed_before: Option<i64>,
}

impl Size {
    /// Available pods that it will not be told to give up.
    fn kept(&self) -> i64 {
        self.available.min(self.replicas)
    }
}

/// A count or a percentage of `of`, as `maxSurge` and the like are written.
pub fn scaled(value: &Value, of: i64, up: bool) -> Option<i64> {
    if let Some(count) = value.as_i64() {
        return Some(count);
    }
    let percent: i64 = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    let product = percent.checked_mul(of)?;
    Some(if up {
        (product + 99).div_euclid(100)
    } else {
        product.div_euclid(100)
    })
}

impl Bounds {
    /// From `spec.strategy.rollingUpdate`: surge rounds up, unavailable down,
    /// and they are never both zero.
    pub fn rolling(replicas: i64, rolling: &Value) -> Self {
        let quarter = Value::from("25%");
        let or_quarter = |value: &Value, up| {
            let value = if value.is_null() { &quarter } else { value };
            scaled(value, replicas, up).unwrap_or(0).max(0)
        };
        let surge = or_quarter(&rolling["maxSurge"], true);
        let mut unavailable = or_quarter(&rolling["maxUnavailable"], false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    /// Of a Deployment that recreates: all old pods go first.
    pub fn recreate(replicas: i64) -> Self {
        Self {
            replicas,
            surge: 0,
            unavailable: replicas,
        }
    }

    /// Most pods at a time.
    pub fn most(&self) -> i64 {
        if self.replicas > 0 {
            self.replicas + self.surge
        } else {
            0
        }
    }

    /// Fewest available pods.
    pub fn least(&self) -> i64 {
        self.replicas - self.unavailable
    }
}

/// How many pods the new ReplicaSet should have now; `total` is what all
/// ReplicaSets together, the new one included, are told to have or still have.
pub fn new_replicas(bounds: Bounds, new: i64, total: i64) -> i64 {
    if new >= bounds.replicas {
        return bounds.replicas;
    }
    let room = bounds.replicas + bounds.surge - total;
    new + room.clamp(0, bounds.replicas - new)
}

/// How many pods each old ReplicaSet should have now.
pub fn old_replicas(bounds: Bounds, new: Size, old: &[Size]) -> Vec<i64> {
    let mut sizes: Vec<i64> = old.iter().map(|size| size.replicas).collect();
    let total = new.replicas + sizes.iter().sum::<i64>();
    // The new pods that are not there yet count as if they never came.
    let unborn = new.replicas - new.kept();
    let mut may_go = total - bounds.least() - unborn;
    if may_go <= 0 {
        return sizes;
    }
    let mut oldest_first: Vec<usize> = (0..old.len()).collect();
    oldest_first.sort_by_key(|&index| old[index].born);
    // Pods that serve nobody go first: that costs no availability.
    for &index in &oldest_first {
        let unhealthy = sizes[index] - old[index].kept();
        let going = unhealthy.min(may_go).max(0);
        sizes[index] -= going;
        may_go -= going;
    }
    let available = new.kept() + old.iter().map(Size::kept).sum::<i64>();
    let mut surplus = (available - bounds.least()).min(may_go);
    for &index in &oldest_first {
        let going = surplus.min(sizes[index]).max(0);
        sizes[index] -= going;
        surplus -= going;
    }
    sizes
}

/// How a change of the wanted number is shared out in the middle of a rollout:
/// in proportion to the present sizes, what rounding leaves to the first.
pub fn proportional(bounds: Bounds, sets: &[Size], reported: i64) -> Vec<i64> {
    let total: i64 = sets.iter().map(|size| size.replicas).sum();
    let change = bounds.most() - total;
    let mut order: Vec<usize> = (0..sets.len()).collect();
    if change > 0 {
        order.sort_by_key(|&i| {
            (
                std::cmp::Reverse(sets[i].replicas),
                std::cmp::Reverse(sets[i].born),
            )
        });
    } else {
        order.sort_by_key(|&i| (std::cmp::Reverse(sets[i].replicas), sets[i].born));
    }
    let mut sizes: Vec<i64> = sets.iter().map(|size| size.replicas).collect();
    let mut shared = 0;
    for &index in &order {
        let share = share(bounds, sets[index], reported);
        let left = change - shared;
        let share = if sets[index].replicas == 0 || left == 0 {
            0
        } else if change > 0 {
            share.min(left)
        } else {
            share.max(left)
        };
        sizes[index] = (sizes[index] + share).max(0);
        shared += share;
    }
    let mut left = bounds.most() - sizes.iter().sum::<i64>();
    for &index in &order {
        let size = (sizes[index] + left).max(0);
        left -= size - sizes[index];
        sizes[index] = size;
    }
    sizes
}

/// By how much one set grows or shrinks.
fn share(bounds: Bounds, set: Size, reported: i64) -> i64 {
    if bounds.replicas == 0 {
        return -set.replicas;
    }
    let before = set.allowed_before.filter(|n| *n > 0).unwrap_or(reported);
    if before <= 0 {
        return 0;
    }
    // Round half up; sizes are not negative.
    let doubled = 2 * set.replicas * bounds.most() / before;
    (doubled + 1) / 2 - set.replicas
}

#[cfg(test)]
mod tests;
