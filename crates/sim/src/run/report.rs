//! What a run came to, as numbers.

/// The numbers of one run, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named after what it counts")]
pub struct Report {
    /// The hash of the trace; of several runs all of them together.
    pub trace: u64,
    pub events: u64,
    pub messages: u64,
    pub copies: u64,
    pub checkpoints: u64,
    pub restores: u64,
    pub points: u64,
    pub failed_jobs: u64,
    pub disk_operations: u64,
    pub disk_failures: u64,
    pub short_writes: u64,
    pub no_room: u64,
    pub failed_syncs: u64,
    pub failed_reads: u64,
    pub misdirected: u64,
    pub crashes: u64,
    pub kills: u64,
    pub client_kills: u64,
    pub cuts: u64,
    pub half_open: u64,
    pub stalls: u64,
    /// Messages that the server handled after their client had left the link.
    pub late: u64,
    pub fenced: u64,
    pub rotten: u64,
    pub clock_jumps: u64,
    pub torn_tails: u64,
    /// The store was too damaged to go on, and said so.
    pub given_up: u64,
    /// A damaged store kept a copy from coming to rest, and said so.
    pub unrest: u64,
    pub nights: u64,
    pub gone: u64,
    pub rounds: u64,
    pub retired: u64,
    pub orders: u64,
    pub grants: u64,
    pub revoked: u64,
    pub quotas: u64,
    pub missing: u64,
}

impl Report {
    /// The numbers with their names.
    pub fn rows(&self) -> [(&'static str, u64); 36] {
        [
            ("events", self.events),
            ("messages", self.messages),
            ("copies", self.copies),
            ("checkpoints", self.checkpoints),
            ("restores", self.restores),
            ("points checked at the end", self.points),
            ("jobs that failed", self.failed_jobs),
            ("operations of the disk", self.disk_operations),
            ("failed operations", self.disk_failures),
            ("of these short writes", self.short_writes),
            ("of these without room", self.no_room),
            ("of these syncs", self.failed_syncs),
            ("of these reads", self.failed_reads),
            ("misdirected writes", self.misdirected),
            ("crashes of the server", self.crashes),
            ("kills of its process", self.kills),
            ("kills of clients", self.client_kills),
            ("links cut", self.cuts),
            ("links half open", self.half_open),
            ("messages that stall", self.stalls),
            ("messages of links left", self.late),
            ("refusals to older links", self.fenced),
            ("bytes rotten", self.rotten),
            ("jumps of the clock", self.clock_jumps),
            ("torn ends set aside", self.torn_tails),
            ("stores given up, with words", self.given_up),
            ("copies given up, with words", self.unrest),
            ("nights", self.nights),
            ("points expired or deleted", self.gone),
            ("rounds of collection", self.rounds),
            ("segments retired", self.retired),
            ("orders of administrators", self.orders),
            ("changes of roles", self.grants),
            ("keys revoked", self.revoked),
            ("quotas set", self.quotas),
            ("commits refused, missing named", self.missing),
        ]
    }

    /// Adds another run. The order of runs does not matter.
    pub fn add(&mut self, other: &Self) {
        self.trace = self.trace.wrapping_add(other.trace);
        self.events += other.events;
        self.messages += other.messages;
        self.copies += other.copies;
        self.checkpoints += other.checkpoints;
        self.restores += other.restores;
        self.points += other.points;
        self.failed_jobs += other.failed_jobs;
        self.disk_operations += other.disk_operations;
        self.disk_failures += other.disk_failures;
        self.short_writes += other.short_writes;
        self.no_room += other.no_room;
        self.failed_syncs += other.failed_syncs;
        self.failed_reads += other.failed_reads;
        self.misdirected += other.misdirected;
        self.crashes += other.crashes;
        self.kills += other.kills;
        self.client_kills += other.client_kills;
        self.cuts += other.cuts;
        self.half_open += other.half_open;
        self.stalls += other.stalls;
        self.late += other.late;
        self.fenced += other.fenced;
        self.rotten += other.rotten;
        self.clock_jumps += other.clock_jumps;
        self.torn_tails += other.torn_tails;
        self.given_up += other.given_up;
        self.unrest += other.unrest;
        self.nights += other.nights;
        self.gone += other.gone;
        self.rounds += other.rounds;
        self.retired += other.retired;
        self.orders += other.orders;
        self.grants += other.grants;
        self.revoked += other.revoked;
        self.quotas += other.quotas;
        self.missing += other.missing;
    }
}
