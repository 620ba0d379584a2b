//! The end of a run: faults stop, all comes to rest, and everything is looked at.

use dormouse_format::VolumeId;
use dormouse_store::scrub;
use dormouse_sync::fetch;
use dormouse_sync::server::Role;

use super::model::Violation;
use super::net::To;
use super::{CALM, Event, Family, Run, Stepped};
use crate::machine::Machine;
use crate::registry::Place;
use crate::source::Disk;
use crate::world::World;

impl Run {
    /// Stops the faults, brings every copy up to date, and checks everything.
    pub(super) fn finish(&mut self) -> Stepped {
        if self.report.given_up > 0 {
            return Ok(());
        }
        self.note(format_args!("the faults stop"));
        self.calm = true;
        (_, self.net.weather) = CALM;
        self.faults.set(CALM.0);
        for link in self.net.all() {
            self.net.leave(link, To::Server);
            self.net.leave(link, To::Client);
            self.server.hang_up(link);
        }
        for at in 0..self.clients.len() {
            self.clients[at].let_go();
            self.clients[at].job = None;
        }
        if self.settings.family == Family::Kept {
            self.relieve();
        }
        self.server_dies(false);
        // One after the other: two that share a volume would go on for ever.
        for at in 0..self.clients.len() {
            if self.clients[at].role != Role::Writer || self.is_revoked(at) {
                continue;
            }
            self.at(0, Event::Idle(at));
            self.go()?;
            if self.report.given_up > 0 {
                return Ok(());
            }
            if self.settings.family != Family::Rot {
                self.at_rest(at)?;
            }
        }
        let lost = self.check(1)?;
        if self.settings.family == Family::Kept {
            self.years_later()?;
        }
        // Once more after a power cut, from the files alone, without an index.
        self.server.die(true);
        self.server.storage.alter(|image| image.clear(crate::storage::INDEX));
        self.start_server()?;
        if self.report.given_up > 0 {
            return Ok(());
        }
        let lost = lost + self.check(5)?;
        let found = self.scrub()?;
        if lost > 0 && found.is_none() && !self.told {
            return Err(Violation(format!("{lost} points are lost, and nothing says so")));
        }
        match found {
            Some(found) if self.settings.family != Family::Rot => {
                Err(Violation(format!("a scrub finds {found}")))
            }
            _ => Ok(()),
        }
    }

    /// The mirror has converged.
    fn at_rest(&self, at: usize) -> Stepped {
        for volume in &self.clients[at].volumes {
            let head = self.model.points(&volume.id).last();
            let state = volume.anchor.and_then(|a| self.model.state(&a));
            if volume.is_behind() || state.is_none_or(|s| **s != volume.disk) {
                let head = head.map_or(0, |h| h.point().seq);
                return Err(Violation(format!(
                    "client {at} does not come to rest: its newest point is {head}"
                )));
            }
        }
        Ok(())
    }

    /// Lists all points, and restores each `nth` of them. On a bad disk some may be lost; how
    /// many could not be had.
    fn check(&mut self, nth: usize) -> Result<u64, Violation> {
        self.look_at_all()?;
        let welcome = (0..self.clients.len()).find(|at| !self.is_revoked(*at));
        let machine = self.clients[welcome.unwrap_or(0)].machine.clone();
        let ids: Vec<VolumeId> = match self.server.store() {
            Some(store) => store.volumes().into_iter().map(|(v, ..)| v.id).collect(),
            None => return Err(Violation("the server does not run".into())),
        };
        let (registry, random) = (self.server.registry.clone(), self.random.clone());
        let mut world = World::of(registry, random, self.now, None);
        let mut lost = 0;
        for id in ids {
            lost += self.restore_all(&mut world, &machine, id, nth)?;
        }
        Ok(lost)
    }

    fn restore_all(
        &mut self,
        world: &mut World,
        machine: &Machine,
        id: VolumeId,
        nth: usize,
    ) -> Result<u64, Violation> {
        let rot = self.settings.family == Family::Rot;
        let failed = |what: &str, e| Violation(format!("{what}: {e}"));
        let points = match world.points(machine, id) {
            Ok(points) => points,
            Err(_) if rot => return Ok(1),
            Err(e) => return Err(failed("points", e)),
        };
        let mut lost = self.model.lost(&id, &points);
        for point in points.iter().step_by(nth) {
            self.report.points += 1;
            let base = point.point().checkpoint;
            let Some(checkpoint) = points.iter().find(|p| p.point().seq == base).copied() else {
                return Err(Violation(format!("point {} has lost its base", point.point().seq)));
            };
            let (both, mut disk) = ([*point, checkpoint], Disk::default());
            match world.restore_to(machine, id, both, fetch::Mode::Fresh, &mut disk) {
                Ok(_) => self.model.restored(point, &disk)?,
                Err(_) if rot => lost += 1,
                Err(e) => return Err(failed(&format!("restore of {}", point.point().seq), e)),
            }
        }
        Ok(lost)
    }

    /// The first fault that a scrub finds.
    fn scrub(&mut self) -> Result<Option<String>, Violation> {
        let vault = self.clients[0].machine.vault;
        let mut found = None;
        let segments = self.server.storage.segments();
        scrub::scrub(&*segments, vault, false, &mut |f| {
            found.get_or_insert(format!("{} byte {}: {}", f.segment, f.offset, f.why));
        })
        .map_err(|e| Violation(format!("scrub: {e}")))?;
        Ok(found)
    }
}
