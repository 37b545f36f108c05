//! Random clusters, policies, Services and packets: whatever the programs do
//! must be among what the independent evaluator finds right.

use fairlead_tests::generate::traffic::{Entry, Sent, Step, step};
use fairlead_tests::generate::{change, cluster};
use fairlead_tests::packet::Body;
use fairlead_tests::random::{Random, cases, seed};
use fairlead_tests::require;

use crate::world::World;

/// Packets through one cluster and what becomes of it.
const PACKETS: u64 = 40;

#[test]
fn every_verdict_and_rewrite_is_one_that_the_rules_allow() {
    require!(Root, Bpf);
    let (seed, cases) = (seed(), cases(12_000));
    let mut world = World::new(&[]);
    for number in 0..cases.div_ceil(PACKETS) {
        if let Err(difference) = run_cluster(&mut world, seed, number) {
            panic!(
                "seed {seed}, cluster {number}: {difference}\n\
                 hint: cargo xtask test kernel --seed {seed} --filter every_verdict"
            );
        }
    }
}

fn run_cluster(world: &mut World, seed: u64, number: u64) -> Result<(), String> {
    let mut random = Random::for_case(seed, number);
    world.restart(cluster(&mut random));
    let mut before: Vec<Sent> = Vec::new();
    let mut story = Vec::new();
    for packet in 0..PACKETS {
        if random.chance(4) {
            let changed = change(&mut random, world.oracle.cluster());
            world.change(changed);
            story.push("a change of the cluster".to_owned());
        }
        let mut next = step(&mut random, world.oracle.cluster(), &before);
        let ip = &next.ip;
        story.push(format!(
            "{:?}: {} to {}: {:?}",
            next.entry, ip.src, ip.dst, ip.body
        ));
        let context = |difference| format!("{}\n{difference}", story.join("\n"));
        if random.chance(8) && lengthen(&mut next) {
            let id = u32::try_from(number * PACKETS + packet).unwrap_or_default() & 0xffff;
            world
                .step_in_pieces(&next, id, 8 * (1 + random.below(4)))
                .map_err(context)?;
        } else if let Some(sent) = world.step(&next).map_err(context)? {
            before.push(sent);
        }
    }
    Ok(())
}

/// Makes a pod's datagram long enough to be cut; the first piece must have its
/// whole transport header.
fn lengthen(step: &mut Step) -> bool {
    match (&mut step.ip.body, step.entry) {
        (Body::Udp { payload, .. }, Entry::Pod(_)) => {
            payload.resize(40, 7);
            true
        }
        _ => false,
    }
}
