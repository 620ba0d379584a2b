//! What a seed stands for: machines, volumes, and how bad everything is.

use std::sync::Arc;

use dormouse_format::geometry;
use dormouse_store::Options;
use dormouse_sync::server::Role;

use super::client::{Client, Volume};
use super::duties::Duties;
use super::faults::{Faults, Rates};
use super::net::{Net, Weather};
use super::server::Server;
use super::trace::Trace;
use super::{Event, MS, Model, Report, Run, S, block};
use crate::machine::{Machine, Pool};
use crate::random::Lcg;
use crate::source::Disk;
use crate::storage::{Image, Storage};
use crate::world::World;

/// Which faults the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// It loses only what was not synced: nothing acknowledged may be lost.
    Sound,
    /// It rots and writes in wrong places too: nothing wrong may be returned.
    Rot,
    /// It is sound, years go by, and the server has duties: retention, deletions, collection,
    /// quotas, roles, revocation.
    Kept,
}

/// How a run is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Which faults the disk has.
    pub family: Family,
    /// Whether two machines write one volume in turn, by takeover.
    pub shared: bool,
    /// Writes to the clients' disks that are still to come.
    pub writes_left: u64,
}

/// Sets a run up.
pub(super) fn prepare(seed: u64, family: Family, print: bool) -> Run {
    let mut random = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd0a3);
    let mut fork = || Lcg(random.below(u64::MAX));
    let (disk_random, net_random, mut world_random) = (fork(), fork(), fork());
    let mut settings_random = fork();
    let settings = Settings {
        family,
        shared: settings_random.below(3) == 0,
        writes_left: 30 + settings_random.below(60),
    };
    let options = Options {
        segment_size: [4 << 10, 16 << 10, 64 << 10, 1 << 20][settings_random.below(4) as usize],
        index_entries: [16, 64, 1000][settings_random.below(3) as usize],
    };
    let faults = Faults::new(Rates::default(), disk_random);
    let watch = Box::new(faults.clone());
    let storage = Storage::new(Image::default(), watch, world_random.below(u64::MAX));
    let pool = Some(Arc::new(Pool::committed()));
    let mut world =
        World::on(world_random.below(u64::MAX), Box::new(storage.clone()), options, pool);
    let start = 1_700_000_000 * S;
    world.now = start;
    let mut clients = clients(&mut world, &mut settings_random, settings.shared);
    if family == Family::Kept {
        clients.extend(others(&mut world, &mut settings_random, &clients));
    }
    let vault = clients[0].machine.vault;
    let server = Server::new(world.registry.clone(), storage, vault, options);
    let bad = settings_random.below(4);
    faults.set(rates(&mut settings_random, family, bad));
    let mut run = Run {
        settings,
        now: world.now,
        skew: 0,
        queue: std::collections::BinaryHeap::new(),
        next: 0,
        random: world_random,
        net: Net::new(net_random, weather(&mut settings_random, bad)),
        faults,
        server,
        clients,
        model: Model::new(family == Family::Rot),
        told: false,
        calm_failures: 0,
        trace: Trace::new(print),
        report: Report::default(),
        calm: false,
        duties: Duties::default(),
    };
    run.note(format_args!("seed {seed}, {settings:?}, {options:?}"));
    if family == Family::Kept {
        run.begin_duties();
    }
    for at in 0..run.clients.len() {
        if run.clients[at].role == Role::Writer {
            run.at(at as u64 * MS, Event::Write(at));
        }
        run.at(S + at as u64 * MS, Event::Idle(at));
    }
    run.at(5 * S, Event::Weather);
    run
}

/// One to three machines of a vault, with their volumes.
fn clients(world: &mut World, random: &mut Lcg, shared: bool) -> Vec<Client> {
    let first = world.machine();
    let mut machines = vec![first.clone()];
    let more = if shared { 1 } else { random.below(3) };
    for _ in 0..more {
        let group = 7 * random.below(2) as u32;
        machines.push(world.second(&first, group));
    }
    let mut clients: Vec<Client> = Vec::new();
    for (i, machine) in machines.into_iter().enumerate() {
        let mut volumes = Vec::new();
        for n in 0..1 + random.below(2) {
            volumes.push(volume(world, random, &machine, &format!("disk-{i}-{n}")));
        }
        if shared && i == 0 {
            volumes[0].created = true;
            let body = volumes[0].body.clone();
            let create = dormouse_format::message::Message::CreateVolume { body };
            world.hello(&machine).unwrap().ask(&create).unwrap();
        }
        if shared && i == 1 {
            let theirs = &clients[0].volumes[0];
            let mut same = Volume::new(theirs.id, theirs.body.clone(), theirs.disk.clone());
            same.created = true;
            volumes.push(same);
        }
        let random = Lcg(random.below(u64::MAX));
        clients.push(Client::new(machine, Role::Writer, volumes, random));
    }
    clients
}

/// An administrator and a reader, who know of all volumes.
fn others(world: &mut World, random: &mut Lcg, clients: &[Client]) -> Vec<Client> {
    let mut known: Vec<&Volume> = Vec::new();
    for volume in clients.iter().flat_map(|c| &c.volumes) {
        if known.iter().all(|k| k.id != volume.id) {
            known.push(volume);
        }
    }
    let mut make = |role| {
        let machine = clients[0].machine.second(&mut world.random);
        world.enrol_as(role, &machine, 0, &[]).unwrap();
        let copy = |v: &&Volume| {
            let mut copy = Volume::new(v.id, v.body.clone(), Disk::default());
            copy.created = true;
            copy
        };
        let volumes = known.iter().map(copy).collect();
        Client::new(machine, role, volumes, Lcg(random.below(u64::MAX)))
    };
    vec![make(Role::Admin), make(Role::Reader)]
}

fn volume(world: &mut World, random: &mut Lcg, machine: &Machine, name: &str) -> Volume {
    let (id, body) = machine.volume(&mut world.random, name, world.now);
    let blocks = match random.below(4) {
        0 => 1 + random.below(20),
        1 | 2 => 100 + random.below(1000),
        _ => (1 << 18) + random.below(1 << 20),
    };
    // The end need not be that of a block.
    let disk = Disk::new(blocks * 4096 - random.below(2) * 1024);
    let mut volume = Volume::new(id, body, disk);
    for _ in 0..random.below(4) {
        change(random, &mut volume);
    }
    volume
}

/// Changes a disk as somebody does who uses it.
pub(super) fn change(random: &mut Lcg, volume: &mut Volume) {
    let disk = &mut volume.disk;
    let end = geometry::blocks(disk.size).max(1);
    let start = random.below(end);
    let count = 1 + random.below(20);
    match random.below(20) {
        // Zeros.
        0..=2 => {
            for b in start..(start + count).min(end) {
                disk.zero(b, 1);
                volume.dirty.insert(b);
            }
        }
        // What is elsewhere too.
        3..=5 => {
            let from = random.below(end);
            for i in 0..count {
                let (from, to) = ((from + i) % end, (start + i) % end);
                match disk.blocks.get(&from).cloned() {
                    Some(content) => disk.write(to, content),
                    None => disk.zero(to, 1),
                }
                volume.dirty.insert(to);
            }
        }
        6 => resize(random, volume, end),
        _ => {
            for b in start..(start + count).min(end) {
                disk.write(b, block(random));
                volume.dirty.insert(b);
            }
        }
    }
    trim_tail(volume);
}

/// Cuts a disk or adds to it. Blocks that are cut off stay dirty: if the disk grows again
/// before it is copied, they are zeros now.
fn resize(random: &mut Lcg, volume: &mut Volume, end: u64) {
    let blocks = 1 + random.below(end + end / 2 + 10);
    volume.dirty.extend(volume.disk.blocks.range(blocks..).map(|(b, _)| *b));
    volume.disk.resize(blocks * 4096);
    let new = geometry::blocks(volume.disk.size);
    // The old last block and the new one, and the ends of the grown range.
    volume.dirty.extend([new.min(end).saturating_sub(1), new - 1]);
    volume.dirty.extend((end..new).take(40));
}

/// A disk that ends within a block has zeros behind its end.
fn trim_tail(volume: &mut Volume) {
    let disk = &mut volume.disk;
    let (last, rest) = (disk.size / 4096, (disk.size % 4096) as usize);
    if rest > 0
        && let Some(content) = disk.blocks.get(&last)
    {
        let mut content = content.to_vec();
        content[rest..].fill(0);
        disk.write(last, content);
    }
}

/// How bad the disk is: not at all, a little, much.
fn rates(random: &mut Lcg, family: Family, bad: u64) -> Rates {
    let mut up_to = |n: u64| random.below(n * bad + 1);
    let sound = Rates {
        crash: up_to(40),
        write: up_to(8),
        short: up_to(8),
        full: up_to(8),
        sync: up_to(30),
        read: up_to(3),
        misdirect: 0,
    };
    match family {
        Family::Sound | Family::Kept => sound,
        Family::Rot => Rates { misdirect: up_to(20), ..sound },
    }
}

fn weather(random: &mut Lcg, bad: u64) -> Weather {
    let mut up_to = |n: u64| random.below(n * bad + 1);
    Weather { cut: up_to(8), black: up_to(4), stall: up_to(10) }
}
