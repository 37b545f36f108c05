//! Rollouts on simulated ReplicaSets that lag, fail and recover at random.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn size(replicas: i64, available: i64, born: i64) -> Size {
    Size {
        replicas,
        available,
        born: at(born),
        allowed_before: None,
    }
}

fn rolling(replicas: i64, surge: &str, unavailable: &str) -> Bounds {
    Bounds::rolling(
        replicas,
        &json!({"maxSurge": surge, "maxUnavailable": unavailable}),
    )
}

#[test]
fn percentages_round_surge_up_and_unavailable_down() {
    let bounds = Bounds::rolling(10, &Value::Null);
    assert_eq!((bounds.surge, bounds.unavailable), (3, 2));
    let bounds = Bounds::rolling(1, &Value::Null);
    assert_eq!((bounds.surge, bounds.unavailable), (1, 0));
    let bounds = rolling(3, "0%", "10%");
    assert_eq!((bounds.surge, bounds.unavailable), (0, 1));
    let bounds = Bounds::rolling(4, &json!({"maxSurge": 2, "maxUnavailable": 9}));
    assert_eq!((bounds.surge, bounds.unavailable), (2, 4));
}

#[test]
fn unhealthy_old_pods_go_before_healthy_ones() {
    let bounds = rolling(10, "20%", "20%");
    // 8 must be available: 8 healthy old pods stay, 2 broken ones go.
    let sizes = old_replicas(bounds, size(0, 0, 9), &[size(6, 6, 1), size(4, 2, 2)]);
    assert_eq!(sizes, [6, 2]);
}

#[test]
fn old_pods_wait_for_new_ones_that_are_not_there_yet() {
    let bounds = rolling(10, "30%", "20%");
    assert_eq!(old_replicas(bounds, size(5, 0, 9), &[size(8, 8, 1)]), [8]);
    assert_eq!(old_replicas(bounds, size(5, 3, 9), &[size(8, 8, 1)]), [5]);
}

#[test]
fn scaling_in_mid_rollout_keeps_the_proportions() {
    let before = |replicas, born| Size {
        allowed_before: Some(13),
        ..size(replicas, replicas, born)
    };
    let sizes = proportional(rolling(20, "6", "0"), &[before(10, 1), before(3, 2)], 13);
    assert_eq!(sizes.len(), 2);
    let bounds = Bounds::rolling(20, &json!({"maxSurge": 6, "maxUnavailable": 0}));
    assert_eq!(
        proportional(bounds, &[before(10, 1), before(3, 2)], 13),
        [20, 6]
    );
    let bounds = Bounds::rolling(5, &json!({"maxSurge": 2, "maxUnavailable": 0}));
    assert_eq!(
        proportional(bounds, &[before(10, 1), before(3, 2)], 13),
        [5, 2]
    );
    let none = Bounds::rolling(0, &Value::Null);
    assert_eq!(
        proportional(none, &[before(10, 1), before(3, 2)], 13),
        [0, 0]
    );
}

/// A ReplicaSet that does what it is told a while later.
#[derive(Clone, Copy, Debug)]
struct Sim {
    told: i64,
    pods: i64,
    available: i64,
    reported: i64,
    reported_pods: i64,
}

impl Sim {
    fn act(&mut self) {
        // Pods that are not available go first, as the deletion order says.
        self.pods = self.told;
        self.available = self.available.min(self.pods);
    }

    fn size(&self, born: i64) -> Size {
        size(self.told, self.reported, born)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Rollout,
    Act(usize),
    Ready(usize, i64),
    Report(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Rollout),
        2 => (0..3_usize).prop_map(Step::Act),
        2 => (0..3_usize, 1..5_i64).prop_map(|(set, count)| Step::Ready(set, count)),
        2 => (0..3_usize).prop_map(Step::Report),
    ];
    prop::collection::vec(step, 1..200)
}

fn roll(bounds: Bounds, sets: &mut [Sim; 3]) {
    let total: i64 = sets.iter().map(|set| set.told.max(set.reported_pods)).sum();
    let wanted = new_replicas(bounds, sets[2].told, total);
    if wanted != sets[2].told {
        sets[2].told = wanted;
        return;
    }
    let old = [sets[0].size(0), sets[1].size(1)];
    let sizes = old_replicas(bounds, sets[2].size(2), &old);
    sets[0].told = sizes[0];
    sets[1].told = sizes[1];
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// From a healthy start, whatever the order and delay of things, there are
    /// never more pods than the surge nor fewer available than allowed, and
    /// once everything has caught up the rollout is over.
    #[test]
    fn a_rollout_never_leaves_its_bounds_and_ends(
        first in 0..20_i64, second in 0..20_i64,
        surge in 0..120_i64, unavailable in 0..120_i64,
        steps in steps(),
    ) {
        let replicas = first + second;
        let percent = |n: i64| format!("{n}%");
        let bounds = rolling(replicas, &percent(surge), &percent(unavailable));
        let healthy = |n| Sim { told: n, pods: n, available: n, reported: n, reported_pods: n };
        let mut sets = [healthy(first), healthy(second), healthy(0)];
        let finish = [Step::Rollout, Step::Act(0), Step::Act(1), Step::Act(2), Step::Ready(2, 99),
            Step::Report(0), Step::Report(1), Step::Report(2)];
        let rounds = usize::try_from(4 * replicas + 4).unwrap();
        let rest = std::iter::repeat_n(finish, rounds).flatten();
        for step in steps.into_iter().chain(rest) {
            match step {
                Step::Rollout => roll(bounds, &mut sets),
                Step::Act(set) => sets[set].act(),
                Step::Ready(set, count) => {
                    sets[set].available = (sets[set].available + count).min(sets[set].pods);
                }
                Step::Report(set) => {
                    sets[set].reported = sets[set].available;
                    sets[set].reported_pods = sets[set].pods;
                }
            }
            let pods: i64 = sets.iter().map(|set| set.pods.max(set.told)).sum();
            let available: i64 = sets.iter().map(|set| set.available.min(set.told)).sum();
            prop_assert!(pods <= replicas + bounds.surge || replicas == 0, "{pods} pods: {sets:?}");
            prop_assert!(available >= replicas - bounds.unavailable, "{available} available: {sets:?}");
        }
        prop_assert_eq!((sets[0].told, sets[1].told, sets[2].told), (0, 0, replicas));
    }

    /// Sharing out a new size always ends at the most that is allowed.
    #[test]
    fn proportional_scaling_adds_up(
        sizes in prop::collection::vec((0..50_i64, 0..60_i64), 1..5),
        replicas in 0..100_i64, surge in 0..30_i64,
    ) {
        let bounds = Bounds { replicas, surge, unavailable: 0 };
        let sets: Vec<Size> = sizes.iter().enumerate()
            .map(|(index, (n, before))| Size {
                allowed_before: Some(*before),
                ..size(*n, *n, i64::try_from(index).unwrap())
            })
            .collect();
        let total: i64 = sets.iter().map(|s| s.replicas).sum();
        let shared = proportional(bounds, &sets, total);
        prop_assert!(shared.iter().all(|n| *n >= 0));
        prop_assert_eq!(shared.iter().sum::<i64>(), bounds.most());
    }
}
