// The programs of ../../bpf/track.bpf.c outside the kernel, for ../program.rs.
//
// Reads commands, a line each, and calls the programs with requests that it has made up; `?` writes
// what they have left in the maps. Everything is small: 64 words of marks, 256 requests of 4 ranges.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OUTSIDE
static void *map_lookup(void *map, const void *key);
static long loop(unsigned count, void *step, void *context, unsigned long long flags)
{
	unsigned i = 0;
	(void)flags;
	while (i < count && !((long (*)(unsigned, void *))step)(i, context))
		i++;
	return i;
}

#include "../../bpf/track.bpf.c"

enum { WORDS = 64, REQUESTS = 256, BIOS = 4 };

static struct control page;
static u64 bits[2 * WORDS];
static struct open places[OPEN_MAX];
static struct run entries[RING_MAX + LISTS];

static void *map_lookup(void *map, const void *key)
{
	u32 k = *(const u32 *)key;
	if (map == &CONTROL)
		return k == 0 ? &page : NULL;
	if (map == &BITS)
		return k < 2 * WORDS ? &bits[k] : NULL;
	if (map == &OPEN)
		return k < OPEN_MAX ? &places[k] : NULL;
	return k < RING_MAX + LISTS ? &entries[k] : NULL;
}

static struct block_device disk_device, other_device;
static struct gendisk disk = { &disk_device }, other = { &other_device };
static struct request_queue queues[2] = { { &disk }, { &other } };
static struct request requests[REQUESTS];
static struct bio bios[REQUESTS][BIOS];

static void tell(void)
{
	printf("everything %llu beyond %llu open %llu ring", page.everything, page.beyond, page.open);
	for (u64 i = page.taken; i < page.put; i++)
		printf(" %llu+%llu", entries[i % RING_MAX].first, entries[i % RING_MAX].count & 0xffffffff);
	printf(" marks");
	u64 *active = bits + (page.epoch & 1) * WORDS;
	for (u64 b = 0; b < WORDS * 64; b++)
		if (active[b / 64] >> (b % 64) & 1)
			printf(" %llu", b);
	printf("\n");
	fflush(stdout);
}

int main(void)
{
	char line[256];
	u64 a, b, c;
	int at, n, id, op;

	disk_device = (struct block_device){ &disk, 7 };
	other_device = (struct block_device){ &other, 9 };
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "disk %llu %llu %llu", &a, &b, &c) == 3) {
			page = (struct control){ .dev = 7, .first = a, .sectors = b, .words = WORDS, .whole = c };
			memset(bits, 0, sizeof bits);
			memset(places, 0, sizeof places);
			memset(entries, 0, sizeof entries);
		} else if (sscanf(line, "issue %d %d%n", &id, &op, &at) == 2) {
			struct request *rq = &requests[id % REQUESTS];
			*rq = (struct request){ .q = &queues[0], .cmd_flags = 0x4000 | op };
			struct bio **next = &rq->bio;
			for (int i = 0; i < BIOS && sscanf(line + at, " %llu %llu%n", &a, &b, &n) == 2; i++) {
				struct bio *bio = &bios[id % REQUESTS][i];
				*bio = (struct bio){ .bi_iter = { a, (u32)b } };
				rq->__sector = i ? rq->__sector : a;
				rq->__data_len += (u32)b;
				*next = bio;
				next = &bio->bi_next;
				at += n;
			}
			rq_issue((u64[]){ (u64)rq });
		} else if (sscanf(line, "complete %d %llu %llu", &id, &a, &b) == 3) {
			rq_complete((u64[]){ (u64)&requests[id % REQUESTS], a, b });
		} else if (sscanf(line, "again %d", &id) == 1) {
			rq_issue((u64[]){ (u64)&requests[id % REQUESTS] });
		} else if (sscanf(line, "elsewhere %d", &id) == 1) {
			requests[id % REQUESTS].q = &queues[1];
		} else if (sscanf(line, "stolen %d", &id) == 1) {
			requests[id % REQUESTS].bio = NULL;
			requests[id % REQUESTS].__data_len = 0;
		} else if (sscanf(line, "bio %d %llu %llu %llu", &op, &a, &b, &c) == 4) {
			struct bio bio = { NULL, &disk_device, op, { a, (u32)b }, c ? &bio : NULL };
			bio_queue((u64[]){ (u64)&bio });
		} else if (sscanf(line, "ended %d %llu %llu %llu", &op, &a, &b, &c) == 4) {
			struct bio bio = { NULL, &disk_device, op, { a, (u32)b }, c ? &bio : NULL };
			bio_complete((u64[]){ 0, (u64)&bio });
		} else if (sscanf(line, "full %llu", &a) == 1) {
			page.put = page.taken + a;
		} else if (line[0] == '?') {
			tell();
		} else {
			fprintf(stderr, "what is this: %s", line);
			return 2;
		}
	}
	return 0;
}
