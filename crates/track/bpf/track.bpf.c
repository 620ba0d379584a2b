// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//
// Marks which blocks of one disk were written, in the kernel.
//
// Owns: the bits of two bitmaps, the counters beside them, and the ring of discards. Invariant: when
// a write is issued, and again when it completes, its blocks are marked in the bitmap that is active
// then; nothing is queued, so nothing can be dropped. What has no range counts as everything; what
// lies behind the last bit, on a disk that has grown, is counted by itself. Who swaps and reads the
// bitmaps: ../src/marks.rs, which has the same rules in Rust.
//
// A discard that completed goes into the ring instead, if it is certain that its blocks were
// discarded and nothing else: it has succeeded as a whole, no write of its range was under way
// together with it, and there is room. What is not certain is marked. Bios are always marked: a
// driver may send one to another disk, and then its completion is not seen here. Why this is right,
// and who reads the ring: ../src/discards.rs.
//
// Built by `cargo xtask bpf`; the object beside it is what the program carries.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define OF_KERNEL __attribute__((preserve_access_index))

// Of the kernel's types, only what is read here; where the fields lie is found out at load time.
struct OF_KERNEL block_device {
	struct gendisk *bd_disk;
	u32 bd_dev;
};
struct OF_KERNEL gendisk {
	struct block_device *part0;
};
struct OF_KERNEL request_queue {
	struct gendisk *disk;
};
struct OF_KERNEL bvec_iter {
	u64 bi_sector;
	u32 bi_size;
};
struct OF_KERNEL bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	u32 bi_opf;
	struct bvec_iter bi_iter;
	void *bi_io_vec;
};
struct OF_KERNEL request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
};

enum {
	OP_MASK = 0xff,
	OP_WRITE = 1,
	OP_DISCARD = 3,
	OP_DRIVER_OUT = 35,
	// Ranges of a discard that are looked at one by one.
	RANGES_MAX = 256,
	// Discards that are under way at the same time; others are marked.
	OPEN_MAX = 128,
	// Places of the ring, and those that stay free: as many may be taken by others, on other
	// processors, between a look at the ring and the taking of a place.
	RING_MAX = 1 << 16,
	RING_SPARE = 1 << 13,
	// Behind the ring, room for two lists of the daemon.
	LISTS = 2 * ((1 << 16) + 1),
	// How often a mark is repeated because the bitmaps were swapped meanwhile.
	TRIES = 4,
	BLOCK_SECTORS_SHIFT = 3,
};

// Behind these fields the page has room for what the daemon records (../src/marks.rs).
struct control {
	u64 epoch;       // its lowest bit says which bitmap is active
	u64 everything;  // how often something was written that has no range here
	u64 marked;      // grows when a bit is newly set
	u64 dev;         // the whole disk
	u64 first;       // first sector of what is tracked
	u64 sectors;     // and its length
	u64 words;       // of 64 bits, in one bitmap
	u64 whole;       // what is tracked is the whole disk
	u64 daemon[2];   // not used here
	u64 beyond;      // how often something was written behind the end of what is tracked
	u64 put;         // how many discards were put into the ring
	u64 taken;       // and how many of them the daemon has taken out
	u64 lists;       // of the daemon
	u64 open;        // discards that are under way
	u8 room[4096 - 120];
};

// A discard that is under way.
struct open {
	u64 request; // its address; 0: none
	u64 first;   // the sectors between which its ranges lie
	u64 end;
	u64 epoch;   // when it was issued
	u64 written; // a write of these sectors was under way as well
};

// Blocks that were discarded.
struct run {
	u64 first;
	u64 count; // in the upper half, the number of this entry: only with it the entry is there
};

// Maps in the form that the loader reads: types and numbers as array lengths.
#define UINT(name, value) int(*name)[value]
struct {
	UINT(type, 2); // BPF_MAP_TYPE_ARRAY
	UINT(max_entries, 1);
	UINT(map_flags, 1 << 10); // BPF_F_MMAPABLE
	u32 *key;
	struct control *value;
} CONTROL SEC(".maps");

struct {
	UINT(type, 2);
	UINT(max_entries, 1); // set when it is loaded
	UINT(map_flags, 1 << 10);
	u32 *key;
	u64 *value;
} BITS SEC(".maps");

struct {
	UINT(type, 2);
	UINT(max_entries, OPEN_MAX);
	UINT(map_flags, 1 << 10);
	u32 *key;
	struct open *value;
} OPEN SEC(".maps");

struct {
	UINT(type, 2);
	UINT(max_entries, RING_MAX + LISTS);
	UINT(map_flags, 1 << 10);
	u32 *key;
	struct run *value;
} DISCARDS SEC(".maps");

// A test has its own: ../tests/program/driver.c.
#ifndef OUTSIDE
static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const loop)(u32 count, void *step, void *context, u64 flags) = (void *)181;
#endif

INLINE struct control *control(void)
{
	u32 key = 0;
	return map_lookup(&CONTROL, &key);
}

struct span {
	u64 first_word;
	u64 first_mask;
	u64 last_word;
	u64 last_mask;
	u64 base; // of the active bitmap
	u64 newly;
	u64 missed;
};

INLINE void mark_word(struct span *s, u64 word, u64 mask)
{
	u32 key = s->base + word;
	u64 *bits = map_lookup(&BITS, &key);
	if (!bits) {
		s->missed = 1;
		return;
	}
	// Its value is used, so that this is ordered before what is read next, on every processor.
	u64 before = __sync_fetch_and_or(bits, mask);
	s->newly |= mask & ~before;
}

static long mark_step(u32 index, struct span *s)
{
	u64 word = s->first_word + index;
	u64 mask = ~0ull;
	if (word == s->first_word)
		mask &= s->first_mask;
	if (word == s->last_word)
		mask &= s->last_mask;
	mark_word(s, word, mask);
	return 0;
}

// Marks sectors of the disk. Whoever swaps the bitmaps first changes the epoch and then reads the
// old one; here the bits are set first and then the epoch is read again. So either the bits are
// seen there, or the change is seen here and the bits are set in the other bitmap too.
//
// Not inlined, and global: so it is verified once, and not for each turn of a loop around it.
__attribute__((noinline)) int mark(u64 sector, u64 sectors)
{
	struct control *c = control();
	if (!c)
		return 0;
	u64 end = sector + sectors;
	u64 tracked_end = c->first + c->sectors;
	if (end > tracked_end) {
		if (c->whole)
			__sync_fetch_and_add(&c->beyond, 1);
		end = tracked_end;
	}
	if (sector < c->first)
		sector = c->first;
	if (sector >= end)
		return 0;
	u64 first = (sector - c->first) >> BLOCK_SECTORS_SHIFT;
	u64 last = (end - 1 - c->first) >> BLOCK_SECTORS_SHIFT;
	struct span s = {
		.first_word = first >> 6,
		.first_mask = ~0ull << (first & 63),
		.last_word = last >> 6,
		.last_mask = ~0ull >> (63 - (last & 63)),
	};
	u64 epoch = *(volatile u64 *)&c->epoch;
	for (int i = 0; i < TRIES; i++) {
		s.base = (epoch & 1) * c->words;
		if (s.first_word == s.last_word)
			mark_word(&s, s.first_word, s.first_mask & s.last_mask);
		else if (loop(s.last_word - s.first_word + 1, mark_step, &s, 0) < 0)
			s.missed = 1;
		u64 now = *(volatile u64 *)&c->epoch;
		if (now == epoch) {
			if (s.newly)
				__sync_fetch_and_add(&c->marked, 1);
			if (s.missed)
				__sync_fetch_and_add(&c->everything, 1);
			return 0;
		}
		epoch = now;
	}
	__sync_fetch_and_add(&c->everything, 1);
	return 0;
}

INLINE bool writes(u32 op)
{
	return op & 1;
}

// Of an operation that writes: marks its range, or everything if it has none.
INLINE void mark_op(struct control *c, u32 op, u64 sector, u32 bytes)
{
	if (op == OP_DRIVER_OUT || (!bytes && op != OP_WRITE))
		__sync_fetch_and_add(&c->everything, 1);
	else if (bytes) // a write of nothing is a flush
		mark(sector, ((u64)bytes + 511) >> 9);
}

struct between {
	u64 first;
	u64 end;
};

static long written_step(u32 index, struct between *w)
{
	struct open *o = map_lookup(&OPEN, &index);
	if (o && o->request && o->first < w->end && w->first < o->end)
		*(volatile u64 *)&o->written = 1;
	return 0;
}

// Says of the discards that are under way that these sectors were written meanwhile. The marks of
// the write are set after this, by operations that order: whoever looks at a discard, once it is in
// the ring, and finds nothing said here, knows that the marks come later than its entry.
__attribute__((noinline)) int written(u64 sector, u64 sectors)
{
	struct between w = { sector, sector + sectors };
	loop(OPEN_MAX, written_step, &w, 0);
	return 0;
}

// Puts blocks into the ring; 0 if it is full.
INLINE bool put(struct control *c, u64 first, u64 count)
{
	u64 put = *(volatile u64 *)&c->put;
	u64 taken = *(volatile u64 *)&c->taken;
	if (put - taken > RING_MAX - RING_SPARE)
		return 0;
	u64 place = __sync_fetch_and_add(&c->put, 1);
	u32 key = place & (RING_MAX - 1);
	struct run *r = map_lookup(&DISCARDS, &key);
	if (!r)
		return 0;
	*(volatile u64 *)&r->first = first;
	__sync_lock_test_and_set(&r->count, (place + 1) << 32 | count);
	__sync_fetch_and_add(&c->marked, 1);
	return 1;
}

// These sectors were discarded: whole blocks go into the ring, parts of others are marked.
__attribute__((noinline)) int discarded(u64 sector, u64 sectors)
{
	struct control *c = control();
	if (!c)
		return 0;
	u64 end = sector + sectors;
	u64 tracked_end = c->first + c->sectors;
	if (end > tracked_end) {
		if (c->whole)
			__sync_fetch_and_add(&c->beyond, 1);
		end = tracked_end;
	}
	if (sector < c->first)
		sector = c->first;
	if (sector >= end)
		return 0;
	u64 from = sector - c->first;
	u64 to = end - c->first;
	u64 first = (from + 7) >> BLOCK_SECTORS_SHIFT;
	// The last block of a disk may be a part of one, and all of it was discarded.
	u64 last = (end == tracked_end ? to + 7 : to) >> BLOCK_SECTORS_SHIFT;
	if (first >= last || !put(c, first, last - first)) {
		mark(sector, end - sector);
		return 0;
	}
	if (from & 7)
		mark(sector, 1);
	if (end != tracked_end && (to & 7))
		mark(end - 1, 1);
	return 0;
}

// Several ranges may have become one request: marks them all, or puts them into the ring.
INLINE void each_range(struct control *c, struct bio *bio, bool zero)
{
	for (int i = 0; i < RANGES_MAX; i++) {
		if (!bio)
			break;
		u32 bytes = bio->bi_iter.bi_size;
		if (zero && bytes)
			discarded(bio->bi_iter.bi_sector, ((u64)bytes + 511) >> 9);
		else
			mark_op(c, OP_DISCARD, bio->bi_iter.bi_sector, bytes);
		bio = bio->bi_next;
	}
	if (bio)
		__sync_fetch_and_add(&c->everything, 1);
}

struct search {
	u64 request;
	u64 first;
	u64 end;
	u64 epoch;
	u32 found; // a place, and one more
};

static long begin_step(u32 index, struct search *s)
{
	struct open *o = map_lookup(&OPEN, &index);
	if (!o || __sync_val_compare_and_swap(&o->request, 0, s->request))
		return 0;
	o->first = s->first;
	o->end = s->end;
	o->epoch = s->epoch;
	// A write that sets this by what lay here before costs a block that is read.
	*(volatile u64 *)&o->written = 0;
	s->found = index + 1;
	return 1;
}

static long find_step(u32 index, struct search *s)
{
	struct open *o = map_lookup(&OPEN, &index);
	if (!o || o->request != s->request)
		return 0;
	s->found = index + 1;
	return 1;
}

// A discard is issued: takes a place for it. 0 if there is none, or it cannot be one.
INLINE bool begin_discard(struct control *c, struct request *rq)
{
	struct bio *bio = rq->bio;
	struct search s = { .request = (u64)rq, .first = ~0ull };
	for (int i = 0; i < RANGES_MAX; i++) {
		if (!bio)
			break;
		u64 first = bio->bi_iter.bi_sector;
		u64 end = first + (((u64)bio->bi_iter.bi_size + 511) >> 9);
		if (first < s.first)
			s.first = first;
		if (end > s.end)
			s.end = end;
		bio = bio->bi_next;
	}
	if (bio)
		return 0;
	loop(OPEN_MAX, find_step, &s, 0);
	u32 key = s.found - 1;
	struct open *o = map_lookup(&OPEN, &key);
	if (s.found && o) {
		// It is issued again; or it is another one, and the end of the first was not seen.
		if (o->first != s.first || o->end != s.end) {
			mark(o->first, o->end - o->first);
			o->first = s.first;
			o->end = s.end;
		}
		return 1;
	}
	s.epoch = *(volatile u64 *)&c->epoch;
	// Before it is there, so that no write that meets it looks past it.
	__sync_fetch_and_add(&c->open, 1);
	loop(OPEN_MAX, begin_step, &s, 0);
	if (!s.found)
		__sync_fetch_and_add(&c->open, -1);
	return s.found;
}

// A discard has succeeded: whether all of it is in the ring for certain.
INLINE bool end_discard(struct control *c, struct request *rq, bool whole)
{
	struct search s = { .request = (u64)rq };
	loop(OPEN_MAX, find_step, &s, 0);
	u32 key = s.found - 1;
	struct open *o = map_lookup(&OPEN, &key);
	if (!s.found || !o)
		return 0;
	bool certain = whole && !*(volatile u64 *)&o->written;
	if (certain) {
		each_range(c, rq->bio, 1);
		// Again, now that it can be found in the ring: see `written`.
		certain = !*(volatile u64 *)&o->written;
	}
	// The daemon may have given it up meanwhile, and marked it.
	if (__sync_val_compare_and_swap(&o->request, s.request, 0) != s.request)
		return 0;
	__sync_fetch_and_add(&c->open, -1);
	return certain;
}

INLINE void on_request(struct request *rq, u32 bytes, bool completed, u8 error)
{
	u32 op = rq->cmd_flags & OP_MASK;
	if (!writes(op))
		return;
	struct control *c = control();
	struct gendisk *disk = rq->q->disk;
	if (!c || !disk || disk->part0->bd_dev != c->dev)
		return;
	struct bio *bio = rq->bio;
	if (op != OP_DISCARD || !bio) {
		if (*(volatile u64 *)&c->open)
			written(rq->__sector, ((u64)bytes + 511) >> 9);
		mark_op(c, op, rq->__sector, bytes);
		return;
	}
	if (completed ? end_discard(c, rq, !error && bytes == rq->__data_len)
		      : begin_discard(c, rq))
		return;
	each_range(c, bio, 0);
}

SEC("tp_btf/block_rq_issue")
int rq_issue(u64 *context)
{
	struct request *rq = (void *)context[0];
	on_request(rq, rq->__data_len, 0, 0);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int rq_complete(u64 *context)
{
	on_request((void *)context[0], (u32)context[2], 1, (u8)context[1]);
	return 0;
}

INLINE void on_bio(struct bio *bio, bool completed)
{
	u32 op = bio->bi_opf & OP_MASK;
	if (!writes(op))
		return;
	struct control *c = control();
	if (!c || bio->bi_bdev->bd_disk->part0->bd_dev != c->dev)
		return;
	u32 bytes = bio->bi_iter.bi_size;
	// Data, and no length: a driver has used up the iterator, and the range is gone.
	if (completed && !bytes && bio->bi_io_vec)
		__sync_fetch_and_add(&c->everything, 1);
	else
		mark_op(c, op, bio->bi_iter.bi_sector, bytes);
}

SEC("tp_btf/block_bio_queue")
int bio_queue(u64 *context)
{
	on_bio((void *)context[0], 0);
	return 0;
}

SEC("tp_btf/block_bio_complete")
int bio_complete(u64 *context)
{
	on_bio((void *)context[1], 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
