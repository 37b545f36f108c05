//! The order in which pods come, go and are updated.

use proptest::prelude::*;

use super::*;

const ORDER: Order = Order {
    start: 0,
    replicas: 3,
    parallel: false,
    partition: Some(0),
};
const WELL: Seat = Seat {
    healthy: true,
    leaving: false,
    over: false,
    updated: true,
};
const OLD: Seat = Seat {
    updated: false,
    ..WELL
};
const SICK: Seat = Seat {
    healthy: false,
    ..WELL
};

fn check(order: Order, seats: &[(i64, Seat)], wanted: &[Act]) {
    assert_eq!(acts(order, &seats.iter().copied().collect()), wanted);
}

#[test]
fn pods_come_one_after_another_and_all_at_once_if_parallel() {
    check(ORDER, &[], &[Act::Create(0)]);
    check(ORDER, &[(0, SICK)], &[]);
    check(ORDER, &[(0, WELL)], &[Act::Create(1)]);
    let parallel = Order {
        parallel: true,
        ..ORDER
    };
    check(parallel, &[(1, SICK)], &[Act::Create(0), Act::Create(2)]);
}

#[test]
fn surplus_pods_go_from_the_end_when_the_others_are_well() {
    let seats = [(0, WELL), (1, WELL), (2, WELL), (3, WELL), (4, WELL)];
    check(ORDER, &seats, &[Act::Delete(4)]);
    let leaving = Seat {
        leaving: true,
        healthy: false,
        ..WELL
    };
    check(
        ORDER,
        &[(0, WELL), (1, WELL), (2, WELL), (3, WELL), (4, leaving)],
        &[],
    );
    check(ORDER, &[(0, SICK), (1, WELL), (2, WELL), (3, WELL)], &[]);
}

#[test]
fn an_update_goes_backwards_down_to_the_partition() {
    check(ORDER, &[(0, OLD), (1, OLD), (2, OLD)], &[Act::Delete(2)]);
    check(ORDER, &[(0, OLD), (1, OLD), (2, SICK)], &[]);
    check(ORDER, &[(0, OLD), (1, OLD), (2, WELL)], &[Act::Delete(1)]);
    let half = Order {
        partition: Some(2),
        ..ORDER
    };
    check(half, &[(0, OLD), (1, OLD), (2, WELL)], &[]);
    let by_hand = Order {
        partition: None,
        ..ORDER
    };
    check(by_hand, &[(0, OLD), (1, OLD), (2, OLD)], &[]);
}

#[test]
fn a_partition_counts_from_the_first_ordinal() {
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": {},
        "spec": {
            "replicas": 3,
            "ordinals": {"start": 5},
            "updateStrategy": {"rollingUpdate": {"partition": 2}},
        },
    }))
    .unwrap();
    check(
        set.order(),
        &[(5, OLD), (6, OLD), (7, OLD)],
        &[Act::Delete(7)],
    );
    check(set.order(), &[(5, OLD), (6, OLD), (7, WELL)], &[]);
}

#[test]
fn a_pod_that_has_ended_is_made_anew() {
    let over = Seat {
        over: true,
        healthy: false,
        ..WELL
    };
    check(ORDER, &[(0, over)], &[Act::Delete(0)]);
}

/// Pods that do what they are told a while later.
struct Sim {
    order: Order,
    seats: BTreeMap<i64, Seat>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Look,
    Heal(i64),
    End(i64),
    Vanish(i64),
    Scale(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Look),
        3 => (0..8_i64).prop_map(Step::Heal),
        1 => (0..8_i64).prop_map(Step::End),
        2 => (0..8_i64).prop_map(Step::Vanish),
        1 => (0..6_i64).prop_map(Step::Scale),
    ];
    prop::collection::vec(step, 0..150)
}

impl Sim {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Look => {
                let acts = acts(self.order, &self.seats);
                for act in &acts {
                    self.judge(act)?;
                }
                for act in acts {
                    self.act(&act);
                }
            }
            Step::Heal(ordinal) => {
                if let Some(seat) = self.seats.get_mut(&ordinal) {
                    seat.healthy = !seat.leaving && !seat.over;
                }
            }
            Step::End(ordinal) => {
                if let Some(seat) = self.seats.get_mut(&ordinal) {
                    (seat.over, seat.healthy) = (true, false);
                }
            }
            Step::Vanish(ordinal) => {
                if self.seats.get(&ordinal).is_some_and(|seat| seat.leaving) {
                    self.seats.remove(&ordinal);
                }
            }
            Step::Scale(replicas) => self.order.replicas = replicas,
        }
        Ok(())
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Create(ordinal) => {
                let updated = *ordinal >= self.order.partition.unwrap_or(0);
                let born = Seat { updated, ..SICK };
                self.seats.insert(*ordinal, born);
            }
            Act::Delete(ordinal) => {
                let seat = self.seats.get_mut(ordinal).unwrap();
                (seat.leaving, seat.healthy) = (true, false);
            }
        }
    }

    /// What no act may do.
    fn judge(&self, act: &Act) -> Result<(), TestCaseError> {
        let healthy = |ordinal: i64| self.seats.get(&ordinal).is_some_and(|seat| seat.healthy);
        let end = self.order.start + self.order.replicas;
        match *act {
            Act::Create(ordinal) => {
                prop_assert!(!self.seats.contains_key(&ordinal));
                prop_assert!((self.order.start..end).contains(&ordinal));
                let before = (self.order.start..ordinal).all(healthy);
                prop_assert!(self.order.parallel || before, "{ordinal} came too early");
            }
            Act::Delete(ordinal) => {
                let seat = self.seats[&ordinal];
                prop_assert!(!seat.leaving, "{ordinal} goes twice");
                if ordinal >= end {
                    let calm = (self.order.start..end).all(healthy);
                    let last = self.seats.keys().next_back() == Some(&ordinal);
                    prop_assert!(
                        self.order.parallel || (calm && last),
                        "{ordinal} went too early"
                    );
                } else if !seat.over {
                    prop_assert!(!seat.updated && Some(ordinal) >= self.order.partition);
                    // A pod that serves is updated after all behind it.
                    let behind = (ordinal + 1..end).all(|o| healthy(o) && self.seats[&o].updated);
                    prop_assert!(!seat.healthy || behind, "{ordinal} was updated too early");
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens to the pods, they come and go in order, and in the end
    /// all are there, well and updated down to the partition.
    #[test]
    fn pods_keep_their_order_and_get_there(
        before in 0..5_i64, replicas in 0..5_i64, partition in 0..4_i64, parallel: bool, steps in steps(),
    ) {
        let order = Order { start: 0, replicas, parallel, partition: Some(partition) };
        let mut sim = Sim { order, seats: (0..before).map(|ordinal| (ordinal, OLD)).collect() };
        for step in steps {
            sim.step(step)?;
        }
        for _ in 0..40 {
            sim.step(Step::Look)?;
            for ordinal in 0..8 {
                sim.step(Step::Vanish(ordinal))?;
                sim.step(Step::Heal(ordinal))?;
            }
        }
        let ordinals: Vec<i64> = sim.seats.keys().copied().collect();
        prop_assert_eq!(ordinals, (0..sim.order.replicas).collect::<Vec<_>>());
        prop_assert!(sim.seats.iter().all(|(ordinal, seat)| seat.healthy && (seat.updated || *ordinal < partition)));
    }
}
