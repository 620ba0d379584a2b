//! What befalls machines between their operations: crashes, kills, clocks, rot.

use super::net::To;
use super::{Event, Family, MS, Run, S, Stepped};

impl Run {
    /// Crashes between operations, kills, clocks, rot.
    pub(super) fn weather(&mut self) -> Stepped {
        if self.settings.writes_left == 0 || self.calm {
            return Ok(());
        }
        let after = self.below(30_000) * MS;
        self.at(after, Event::Weather);
        if self.server.up && self.server.is_poisoned() {
            self.report.kills += 1;
            self.server_dies(false);
            return Ok(());
        }
        match self.below(12) {
            0 if self.server.up => {
                self.report.crashes += 1;
                self.server_dies(true);
            }
            1 if self.server.up => {
                self.report.kills += 1;
                self.server_dies(false);
            }
            2 => {
                let at = self.below(self.clients.len() as u64) as usize;
                self.note(format_args!("client {at} is killed"));
                self.report.client_kills += 1;
                if let Some(link) = self.clients[at].die() {
                    self.net.leave(link, To::Client);
                    if self.below(2) == 0 {
                        self.at(0, Event::Hangup(link, To::Server));
                    }
                }
                let after = self.below(10_000) * MS;
                self.at(after, Event::Idle(at));
            }
            3 | 4 => {
                let scale = [S, 3600 * S, 400 * 86_400 * S][self.below(3) as usize];
                let jump = self.below(2 * scale) as i64 - scale as i64;
                let whose = self.below(self.clients.len() as u64 + 1) as usize;
                let past = -(self.now as i64) + 1;
                let clock = self.clients.get_mut(whose).map_or(&mut self.skew, |c| &mut c.skew);
                *clock = (*clock + jump).max(past);
                self.report.clock_jumps += 1;
                self.note(format_args!("clock {whose} jumps by {jump} ns"));
            }
            5 | 6 if self.settings.family == Family::Rot => self.rot(),
            7 if self.server.up => return self.look_at_all(),
            _ => {}
        }
        Ok(())
    }

    fn rot(&mut self) {
        let image = self.server.storage.image();
        let dirs = [crate::storage::SEGMENTS, crate::storage::INDEX];
        let dir = dirs[usize::from(self.below(4) == 0)];
        let names: Vec<String> = image.names(dir).into_iter().collect();
        if names.is_empty() {
            return;
        }
        let name = &names[self.below(names.len() as u64) as usize];
        let len = image.content(dir, name).map_or(0, <[u8]>::len) as u64;
        if len > 0 {
            let (at, mask) = (self.below(len) as usize, 1 << self.below(8));
            self.note(format_args!("{dir}/{name} rots at {at}"));
            self.report.rotten += 1;
            self.server.storage.alter(|image| image.rot(dir, name, at, mask));
        }
    }
}
