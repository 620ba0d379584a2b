// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//
// Marks which blocks of one disk were written, in the kernel.
//
// Owns: the bits of two bitmaps, and the counters beside them. Invariant: when a write is issued,
// and again when it completes, its blocks are marked in the bitmap that is active then; nothing is
// queued, so nothing can be dropped. What has no range counts as everything; what lies behind the
// last bit, on a disk that has grown, is counted by itself. Who swaps and reads the bitmaps: ../src/marks.rs, which has the same rules in Rust.
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
	u8 room[4096 - 88];
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

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const loop)(u32 count, void *step, void *context, u64 flags) = (void *)181;

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

INLINE void on_request(struct request *rq, u32 bytes)
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
		mark_op(c, op, rq->__sector, bytes);
		return;
	}
	// Several ranges may have become one request.
	for (int i = 0; i < RANGES_MAX; i++) {
		if (!bio)
			break;
		mark_op(c, op, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
		bio = bio->bi_next;
	}
	if (bio)
		__sync_fetch_and_add(&c->everything, 1);
}

SEC("tp_btf/block_rq_issue")
int rq_issue(u64 *context)
{
	struct request *rq = (void *)context[0];
	on_request(rq, rq->__data_len);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int rq_complete(u64 *context)
{
	on_request((void *)context[0], (u32)context[2]);
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
