/*
 * kv_handoff: hands a KV cache from prefill to decode, through the C interface of Headrace.
 *
 *     cc kv_handoff.c $(pkg-config --cflags --libs headrace) -o kv_handoff && ./kv_handoff
 *
 * Prefill and decode are two processes with a paged KV cache each. Block numbers differ on the two sides, as they do
 * between two engines. There are two ways to hand a request over, and this program goes both:
 *
 *     request 1, pushed:  prefill WRITEs its blocks into those that decode has chosen; a notification tells decode
 *     request 2, pulled:  decode READs prefill's blocks; a notification tells prefill that it may reuse them
 *
 * Afterwards each side checks every byte of its cache. The exit status is 0 when all is well.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <headrace.h>

enum { BLOCK_BYTES = 16 << 10, BLOCKS = 64, REQUEST_BLOCKS = 6 };

/* Which blocks the two engines happened to have free. */
static const uint32_t PREFILL_1[REQUEST_BLOCKS] = {9, 2, 33, 34, 35, 50};
static const uint32_t DECODE_1[REQUEST_BLOCKS] = {0, 63, 7, 8, 9, 21};
static const uint32_t PREFILL_2[REQUEST_BLOCKS] = {12, 40, 41, 5, 6, 28};
static const uint32_t DECODE_2[REQUEST_BLOCKS] = {17, 18, 1, 2, 44, 3};

static const uint64_t WAIT_NS = UINT64_C(30000000000);
static const char *role = "";

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s: %s\n", role, what, why);
    exit(1);
}

/* Ends the program where a call failed. A real engine would look at the status, and at hr_error_retryable(). */
static void check(hr_status_t status, hr_error_t **error, const char *what)
{
    if (status == HR_OK) {
        return;
    }
    fprintf(stderr, "%s: %s: %s: %s\n", role, what, hr_status_name(status), hr_error_message(*error));
    hr_error_free(*error);
    exit(1);
}

/* What prefill computes for a block: another value at each place. Decode's cache begins with zeros. */
static uint8_t kv_byte(uint32_t block, uint32_t at)
{
    return (uint8_t)(1 + (block * 131 + at * 7 + at / 256) % 255);
}

/* Compares the whole cache, byte by byte, with what has to be in block `to[i]`: block `from[i]` of prefill. */
static void check_cache(const uint8_t *cache, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    for (uint32_t block = 0; block < BLOCKS; block++) {
        int64_t source = -1;
        for (uint32_t i = 0; i < count; i++) {
            source = to[i] == block ? (int64_t)from[i] : source;
        }
        for (uint32_t at = 0; at < BLOCK_BYTES; at++) {
            uint8_t expected = source < 0 ? 0 : kv_byte((uint32_t)source, at);
            if (cache[(size_t)block * BLOCK_BYTES + at] != expected) {
                fprintf(stderr, "%s: block %u is wrong at byte %u\n", role, (unsigned)block, (unsigned)at);
                exit(1);
            }
        }
    }
}

static hr_agent_t *create_agent(void)
{
    hr_error_t *error;
    hr_agent_t *agent;
    hr_config_t config;

    hr_config_init(&config, sizeof config);
    config.name = role;
    config.peer_timeout_ns = WAIT_NS; /* patient, so that this also runs in a debugger and under valgrind */
    check(hr_agent_create(&config, &agent, &error), &error, "create an agent");
    return agent;
}

static hr_region_t *create_cache(hr_agent_t *agent)
{
    hr_error_t *error;
    hr_region_t *cache;

    hr_region_options_t options;

    hr_region_options_init(&options, sizeof options);
    options.block_bytes = BLOCK_BYTES; /* each block can be revoked by itself */
    check(hr_agent_alloc(agent, (uint64_t)BLOCKS * BLOCK_BYTES, "kv", &options, &cache, &error), &error,
          "allocate the cache");
    return cache;
}

/* Waits for what the other side has to say. The caller frees the event. */
static hr_event_t *next_notification(hr_agent_t *agent)
{
    for (;;) {
        hr_error_t *error;
        hr_event_t *event;

        check(hr_agent_wait_event(agent, WAIT_NS, &event, &error), &error, "wait for a notification");
        if (event->kind == HR_EVENT_PEER_LOST) {
            fail("the peer is gone", hr_error_message(event->reason));
        }
        if (event->kind == HR_EVENT_NOTIF) {
            return event;
        }
        hr_event_free(event); /* the peer is up, or something that this program does not know */
    }
}

/* Waits until the peer has left, so that it has got everything that was sent to it. */
static void wait_for_goodbye(hr_agent_t *agent)
{
    for (bool left = false; !left;) {
        hr_error_t *error;
        hr_event_t *event;

        check(hr_agent_wait_event(agent, WAIT_NS, &event, &error), &error, "wait for the peer to leave");
        left = event->kind == HR_EVENT_PEER_LOST;
        if (left) {
            printf("%s: %s\n", role, hr_error_message(event->reason));
        }
        hr_event_free(event);
    }
}

/* Waits until a transfer is done, says how it went, and frees it. */
static void finish(hr_xfer_t *xfer, const char *what)
{
    static const char *const PATHS[] = {"?", "shared memory", "process memory", "?", "tcp"};
    hr_error_t *error;
    hr_done_t done;

    check(hr_xfer_wait(xfer, HR_FOREVER, &done, &error), &error, what);
    printf("%s: %s: %llu bytes by %s\n", role, what, (unsigned long long)done.bytes, PATHS[done.path & 7]);
    hr_xfer_free(xfer);
}

/* The channel that engines have anyway, to carry metadata: here a pipe. */
static void send_all(int fd, const void *data, size_t len)
{
    for (size_t sent = 0; sent < len;) {
        ssize_t n = write(fd, (const char *)data + sent, len - sent);
        if (n <= 0) {
            fail("send metadata", "the pipe is closed");
        }
        sent += (size_t)n;
    }
}

static void receive_all(int fd, void *data, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = read(fd, (char *)data + got, len - got);
        if (n <= 0) {
            fail("receive metadata", "the pipe is closed");
        }
        got += (size_t)n;
    }
}

/* Decode: makes itself known, gets request 1, fetches request 2. */
static void decode(int to_prefill)
{
    role = "decode";
    hr_error_t *error;
    hr_agent_t *agent = create_agent();
    hr_region_t *cache = create_cache(agent);

    /* Its metadata names the agent, its addresses and its regions; with it go the blocks for request 1. */
    uint8_t *blob;
    size_t len;
    check(hr_agent_metadata(agent, &blob, &len, &error), &error, "get the metadata");
    send_all(to_prefill, &len, sizeof len);
    send_all(to_prefill, blob, len);
    send_all(to_prefill, DECODE_1, sizeof DECODE_1);
    hr_bytes_free(blob, len);

    /* Request 1 is here when its notification is. The event knows who sent it: the peer to fetch request 2 from. */
    hr_event_t *event = next_notification(agent);
    check_cache(hr_region_data(cache), PREFILL_1, DECODE_1, REQUEST_BLOCKS);
    printf("decode: \"%.*s\" has arrived, every byte is right\n", (int)event->data_len, (const char *)event->data);
    hr_peer_t *peer = hr_peer_clone(event->peer);
    hr_event_free(event);

    /* The next notification says where request 2 lies in prefill's cache. */
    uint32_t theirs[REQUEST_BLOCKS];
    event = next_notification(agent);
    if (event->data_len != sizeof theirs) {
        fail("request 2", "an unexpected notification");
    }
    memcpy(theirs, event->data, sizeof theirs);
    hr_event_free(event);

    hr_region_info_t info;
    hr_list_t *local;
    hr_remote_list_t *remote;
    check(hr_peer_region(peer, "kv", &info, &error), &error, "find prefill's cache");
    hr_desc_t from = hr_desc_paged(info.id, 0, BLOCK_BYTES, BLOCK_BYTES, theirs, REQUEST_BLOCKS);
    hr_desc_t to = hr_desc_paged(hr_region_id(cache), 0, BLOCK_BYTES, BLOCK_BYTES, DECODE_2, REQUEST_BLOCKS);
    check(hr_peer_prepare(peer, &from, 1, &remote, &error), &error, "prepare prefill's blocks");
    check(hr_agent_prepare(agent, &to, 1, &local, &error), &error, "prepare the blocks for request 2");

    hr_xfer_options_t options;
    hr_xfer_options_init(&options, sizeof options);
    options.notif = (const uint8_t *)"request 2 was fetched";
    options.notif_len = strlen((const char *)options.notif);
    options.timeout_ns = WAIT_NS;
    hr_xfer_t *xfer;
    check(hr_peer_read(peer, local, remote, &options, &xfer, &error), &error, "read request 2");
    finish(xfer, "read request 2");

    uint32_t all_from[2 * REQUEST_BLOCKS], all_to[2 * REQUEST_BLOCKS];
    memcpy(all_from, PREFILL_1, sizeof PREFILL_1);
    memcpy(all_from + REQUEST_BLOCKS, PREFILL_2, sizeof PREFILL_2);
    memcpy(all_to, DECODE_1, sizeof DECODE_1);
    memcpy(all_to + REQUEST_BLOCKS, DECODE_2, sizeof DECODE_2);
    check_cache(hr_region_data(cache), all_from, all_to, 2 * REQUEST_BLOCKS);
    printf("decode: request 2 is here too, every byte is right\n");

    wait_for_goodbye(agent);
    hr_remote_list_free(remote);
    hr_list_free(local);
    hr_peer_free(peer);
    hr_region_free(cache);
    hr_agent_destroy(agent);
}

/* Shows what an error looks like: decode has no block of that number. */
static void show_an_error(hr_peer_t *peer, uint64_t region)
{
    const uint32_t beyond = BLOCKS;
    hr_desc_t wrong = hr_desc_paged(region, 0, BLOCK_BYTES, BLOCK_BYTES, &beyond, 1);
    hr_error_t *error;
    hr_remote_list_t *list;
    hr_status_t status = hr_peer_prepare(peer, &wrong, 1, &list, &error);

    if (status != HR_BAD_LIST || list != NULL) {
        fail("a block beyond the cache", hr_status_name(status));
    }
    printf("prefill: as it should, block %u fails: %s: %s (%s)\n", (unsigned)beyond, hr_status_name(status),
           hr_error_message(error), hr_error_retryable(error) ? "try again" : "no use in trying again");
    hr_error_free(error);
}

/* Prefill: meets decode, pushes request 1, keeps request 2 until it was fetched. */
static void prefill(int from_decode)
{
    role = "prefill";
    hr_error_t *error;
    hr_agent_t *agent = create_agent();
    hr_region_t *cache = create_cache(agent);
    uint8_t *bytes = hr_region_data(cache);
    for (uint32_t block = 0; block < BLOCKS; block++) {
        for (uint32_t at = 0; at < BLOCK_BYTES; at++) {
            bytes[(size_t)block * BLOCK_BYTES + at] = kv_byte(block, at);
        }
    }

    size_t len;
    receive_all(from_decode, &len, sizeof len);
    uint8_t *blob = malloc(len);
    if (blob == NULL) {
        fail("receive metadata", "out of memory");
    }
    receive_all(from_decode, blob, len);
    uint32_t theirs[REQUEST_BLOCKS];
    receive_all(from_decode, theirs, sizeof theirs);

    hr_peer_t *peer;
    hr_region_info_t info;
    check(hr_agent_add_peer(agent, blob, len, &peer, &error), &error, "connect to decode");
    free(blob);
    check(hr_peer_region(peer, "kv", &info, &error), &error, "find decode's cache");

    /* Both caches as lists of all their blocks, prepared once; a transfer selects blocks by number. */
    hr_desc_t all_ours = hr_desc_strided(hr_region_id(cache), 0, BLOCK_BYTES, BLOCK_BYTES, BLOCKS);
    hr_desc_t all_theirs = hr_desc_strided(info.id, 0, BLOCK_BYTES, BLOCK_BYTES, BLOCKS);
    hr_list_t *local;
    hr_remote_list_t *remote;
    check(hr_agent_prepare(agent, &all_ours, 1, &local, &error), &error, "prepare our cache");
    check(hr_peer_prepare(peer, &all_theirs, 1, &remote, &error), &error, "prepare decode's cache");
    char *text;
    check(hr_peer_explain(peer, local, remote, &text, &error), &error, "explain");
    printf("prefill: to %s: %s\n", hr_peer_name(peer), text);
    hr_string_free(text);

    hr_xfer_options_t options;
    hr_xfer_options_init(&options, sizeof options);
    options.local_indices = PREFILL_1;
    options.local_count = REQUEST_BLOCKS;
    options.remote_indices = theirs;
    options.remote_count = REQUEST_BLOCKS;
    options.notif = (const uint8_t *)"request 1";
    options.notif_len = strlen((const char *)options.notif);
    hr_xfer_t *xfer;
    check(hr_peer_write(peer, local, remote, &options, &xfer, &error), &error, "write request 1");
    finish(xfer, "write request 1");

    show_an_error(peer, info.id);

    /* Where request 2 lies. Its blocks stay untouched until decode has said that it has them. */
    const uint8_t *where = (const uint8_t *)PREFILL_2;
    check(hr_peer_notify(peer, where, sizeof PREFILL_2, &error), &error, "offer request 2");
    hr_event_t *event = next_notification(agent);
    printf("prefill: \"%.*s\", so its blocks are free again\n", (int)event->data_len, (const char *)event->data);
    hr_event_free(event);

    hr_remote_list_free(remote);
    hr_list_free(local);
    hr_peer_free(peer);
    check(hr_region_close(cache, &error), &error, "close the cache");
    hr_region_free(cache);
    hr_agent_destroy(agent);
}

int main(void)
{
    int pipe_ends[2], status = 1;

    /* Lines of the two processes come out whole and in order. */
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    if (pipe(pipe_ends) != 0) {
        fail("pipe", "failed");
    }
    pid_t child = fork(); /* before any agent is there */
    if (child < 0) {
        fail("fork", "failed");
    }
    if (child == 0) {
        close(pipe_ends[0]);
        decode(pipe_ends[1]);
        return 0;
    }
    close(pipe_ends[1]);
    prefill(pipe_ends[0]);
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fail("decode", "did not end well");
    }
    printf("both sides are done\n");
    return 0;
}
