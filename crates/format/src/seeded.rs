//! Bugs on purpose, to test the tests: `cargo xtask mutants`.
//!
//! Owns: the list of them, and which one is on. Without the feature `seeded-bugs` none can
//! be, and nothing of this is in the program. With it, the one that `DORMOUSE_SEEDED_BUG`
//! names is. Invariant: each bug of the list stands at exactly one place of its crate
//! (`cargo xtask tidy` looks), and one that is not in the list cannot be asked for.

/// Whether this build can have bugs on purpose. What is shipped refuses to be built so.
pub const ON: bool = cfg!(feature = "seeded-bugs");

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bug {
    /// What it is called: at its place in the source, and in the variable.
    pub name: &'static str,
    /// The crate that it is in.
    pub part: &'static str,
    /// The mistake.
    pub mistake: &'static str,
}

/// Whether this bug is on.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn seeded(_name: &str) -> bool {
    false
}

/// Whether this bug is on.
#[cfg(feature = "seeded-bugs")]
pub fn seeded(name: &str) -> bool {
    use std::sync::OnceLock;
    static ACTIVE: OnceLock<Option<&'static str>> = OnceLock::new();
    let named = || std::env::var("DORMOUSE_SEEDED_BUG").ok().filter(|name| !name.is_empty());
    *ACTIVE.get_or_init(|| named().map(|name| find(&name))) == Some(name)
}

/// The bug of this name.
#[cfg(feature = "seeded-bugs")]
#[expect(clippy::panic, reason = "a typing error must not look like a bug that nothing finds")]
fn find(name: &str) -> &'static str {
    match BUGS.iter().find(|bug| bug.name == name) {
        Some(bug) => bug.name,
        None => panic!("DORMOUSE_SEEDED_BUG: no bug is called '{name}'"),
    }
}

const fn bug(part: &'static str, name: &'static str, mistake: &'static str) -> Bug {
    Bug { name, part, mistake }
}

/// All of them, in the order of the crates.
pub const BUGS: &[Bug] = &[
    bug("format", "reserved-unchecked", "reserved bytes may hold anything"),
    bug("format", "count-bound", "one item more than the limit is taken"),
    bug("format", "frame-bound", "a frame of one byte more than its limit is taken"),
    bug("format", "run-beyond-chunk", "a run may reach one block beyond the largest chunk"),
    bug("crypt", "aad-without-vault", "associated data lacks the vault"),
    bug("crypt", "aad-without-writer", "associated data lacks the writer"),
    bug("crypt", "nonce-constant", "the nonce is the same for all records of a key"),
    bug("crypt", "nonce-without-payload", "the nonce does not depend on the payload"),
    bug("crypt", "key-without-end", "a data key seals more than 2^32 records"),
    bug("crypt", "sealed-unopened", "what is sealed is not opened again and compared"),
    bug("crypt", "unpack-longer", "a chunk that opens to more than its blocks is taken"),
    bug("crypt", "content-unchecked", "the id of an opened chunk is not compared with its digests"),
    bug("crypt", "domain-dropped", "signatures of all domains are alike"),
    bug("crypt", "id-without-epoch", "the id of a chunk does not depend on the epoch"),
    bug("crypt", "tag-without-address", "the tag of a block does not depend on its address"),
    bug("crypt", "header-unchecked", "the check of a record's header is not compared"),
    bug("crypt", "body-unchecked", "the check of a record's body is not compared"),
    bug("store", "segment-name-unsynced", "the directory is not synced after a new segment"),
    bug("store", "segment-header-unsynced", "a new segment is used before its header is synced"),
    bug("store", "seal-unsynced", "a segment is begun before the seal of the last is synced"),
    bug("store", "seal-table-short", "the table of a seal lacks the last record"),
    bug("store", "durable-ahead", "a trailer says that what was written is durable"),
    bug("store", "durable-late", "the end of what a sync made durable is read after it"),
    bug("store", "not-poisoned", "after a failed write or sync the log goes on"),
    bug("store", "sync-retried", "a sync that failed is tried again"),
    bug("store", "roll-bound", "a segment may be longer than its size by a trailer"),
    bug("store", "record-unchecked", "a record that is read is not checked"),
    bug("store", "before-unchecked", "a segment may follow any other"),
    bug("store", "damage-as-torn-end", "damage to what was durable is cut off like a torn end"),
    bug("store", "torn-copy-unsynced", "a torn end is cut off before its copy is durable"),
    bug(
        "store",
        "torn-name-unsynced",
        "a torn end is cut off before the name of its copy is durable",
    ),
    bug("store", "reopen-unsynced", "what an earlier process left unsynced is taken for durable"),
    bug(
        "store",
        "reopen-name-unsynced",
        "the name of a segment that an earlier process began is taken for durable",
    ),
    bug("store", "reopen-unwritten", "what a failed sync left is synced again, not written again"),
    bug("store", "chain-unchecked", "the chain of entries is not checked"),
    bug("store", "trailer-unchecked", "the check of a trailer is not compared"),
    bug("store", "tail-unchecked", "the check of a tail is not compared"),
    bug("store", "run-of-any-log", "a run of the index of another log is taken"),
    bug(
        "store",
        "flush-too-much",
        "the index forgets the segment that is written when it writes a run",
    ),
    bug("store", "merge-short", "a merge of runs loses the last entry of each block"),
    bug("store", "deltas-of-all-tries", "deltas of tries that failed count too after an opening"),
    bug("store", "newest-point-lost", "a damaged point that may be the newest is passed over"),
    bug("store", "generation-unsynced", "a generation is told before it is durable"),
    bug("store", "generation-kept", "the same instance keeps its generation when it opens again"),
    bug("store", "barrier-unsynced", "a barrier is answered without a sync"),
    bug("store", "commit-unsynced", "a point is acknowledged without a sync"),
    bug("store", "visible-before-durable", "a point is shown before it is durable"),
    bug("store", "fence-open", "a connection that was replaced may still commit"),
    bug("store", "point-unsigned", "the signature of a point is not checked at commit"),
    bug("store", "missing-unchecked", "a point may name chunks that are not there"),
    bug("store", "receipt-goes-back", "the time of receipt follows the clock back"),
    bug("store", "resize-without-part", "a delta point may change the size without a part"),
    bug("store", "root-unchecked", "the content root is not compared at commit"),
    bug("store", "have-distrusted", "a distrusted chunk is there"),
    bug("store", "have-bound", "a chunk with one block too few is there"),
    bug("store", "patch-order", "patches of a map page are applied newest first"),
    bug("store", "shrink-keeps-pages", "pages beyond the new end stay in the map"),
    bug("store", "shrink-forgotten", "what a shrink took away comes back when the volume grows"),
    bug("store", "patch-hints-lost", "a patch leaves out blocks of which only the chunk differs"),
    bug("store", "floor-ignored", "what is younger than the floor may expire"),
    bug("store", "pins-expire", "points that forks begin with may expire"),
    bug("store", "deltas-expire-alone", "what a kept point is built on may expire"),
    bug("store", "clock-believed", "a clock that has jumped is believed"),
    bug("store", "deletion-early", "a deletion happens before its time"),
    bug("store", "deletion-not-undone", "a deletion that was taken back happens all the same"),
    bug("store", "policy-at-once", "what was set before holds no more as soon as something is set"),
    bug("store", "quota-unchecked", "what is beyond the quota is taken"),
    bug("sync", "role-unchecked", "every client may do everything"),
    bug("sync", "revoked-welcome", "a revoked key is let in"),
    bug("sync", "bridge-lost", "the server takes a bridge and does not keep it"),
    bug("sync", "bridge-unsigned", "the signature of a bridge is not checked"),
    bug("sync", "gap-unsaid", "points may be left out that are not said to have expired"),
    bug("sync", "gap-unbridged", "points may have expired without a bridge over them"),
    bug("store", "pins-ignored", "what a connection was promised is not pinned"),
    bug("store", "pins-end-early", "a pin that is released while a collection runs is forgotten"),
    bug("store", "pending-ignored", "what is written and not committed is collected"),
    bug("store", "fork-roots-forgotten", "what forks refer to is not marked"),
    bug("store", "base-forgotten", "a point that is kept does not keep its checkpoint"),
    bug("store", "page-base-forgotten", "pages that a page stands on are not marked"),
    bug("store", "grace-ignored", "what expired points refer to goes at once"),
    bug("store", "retired-unsynced", "segments are removed before it is durable why"),
    bug("store", "expiry-unsynced", "points are gone before the note of it is durable"),
    bug("store", "gap-unexplained", "a gap between segments that nothing explains is taken"),
    bug(
        "store",
        "moved-unsought",
        "what was moved while it was looked for is not looked for again",
    ),
    bug(
        "store",
        "copied-undurable",
        "what a second copy is brought need not be durable in the log",
    ),
    bug("store", "copy-cut-short", "a second copy goes on behind what a crash has torn"),
    bug("store", "copy-unsettled", "a copy whose last run was cut short is promoted as it is"),
    bug("store", "dropped-early", "a second copy drops a retired segment before it is told why"),
    bug("store", "heal-hides", "healing puts a copy's segment over records that it lacks"),
    bug("sync", "end-unmarked", "the end of a connection leaves no mark of what is durable"),
    bug("sync", "put-for-another", "a client puts chunks under the name of another writer"),
    bug("sync", "extents-before-chunk", "extents are sent before their chunk is put"),
    bug("sync", "zeros-unsent", "a block that became zero is not told"),
    bug("sync", "have-shifted", "answers about chunks are taken one chunk late"),
    bug("sync", "have-short", "an answer about fewer chunks than asked for is taken"),
    bug(
        "sync",
        "last-leaf-skipped",
        "a last leaf that is not full is not compared when it became zero",
    ),
    bug("sync", "cut-bound", "a chunk may have 65 blocks"),
    bug("sync", "touched-leaf-kept", "a checkpoint keeps the old hash of a leaf that became zero"),
    bug("sync", "top-unchecked", "the top of a map need not be under the signed root"),
    bug("sync", "node-unchecked", "the hash of a map node is not checked"),
    bug("sync", "leaf-unchecked", "the hash of a leaf is not checked"),
    bug("sync", "deltas-unchecked", "the running hash of deltas is not checked"),
    bug("sync", "first-delta-wins", "of two deltas of a block the older one counts"),
    bug("sync", "tag-unchecked", "the tag of an opened block is not compared with the map"),
    bug("sync", "prev-unchecked", "the hash of the point before is not compared"),
    bug("sync", "anchor-by-number", "the head that was seen is compared by its number only"),
    bug("sync", "signature-unchecked", "the signature of a point is not checked by the reader"),
    bug("sync", "builds-on-any", "a point is read with a checkpoint that it does not build on"),
    bug("bucket", "acknowledged-unput", "'remote' acknowledges what only this machine has"),
    bug("bucket", "fence-unput", "a vault is opened without a fence at the end of its chain"),
    bug("bucket", "taken-believed", "a part whose name is taken counts as put"),
    bug(
        "bucket",
        "doomed-at-once",
        "a segment goes from the bucket before the note of it is there",
    ),
    bug("bucket", "probe-believes", "a storage that creates one object twice is used"),
];

#[cfg(all(test, feature = "seeded-bugs"))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "no bug is called 'commit-unsynce'")]
    fn a_name_that_is_not_in_the_list_is_no_bug() {
        assert_eq!(find("commit-unsynced"), "commit-unsynced");
        find("commit-unsynce");
    }
}
