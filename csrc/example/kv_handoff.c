/*
 * kv_handoff: hands a KV cache from prefill to decode, through the C interface of Headrace.
 *
 *     cc kv_handoff.c $(pkg-config --cflags --libs headrace) -o kv_handoff && ./kv_handoff
 *
 * Prefill and decode are two processes with a paged KV cache each: LAYERS layers of BLOCKS blocks. Block numbers differ
 * on the two sides, as they do between two engines. There are two ways to hand a request over, and this program goes
 * both:
 *
 *     request 1, pushed:  prefill WRITEs each layer when it is computed, into blocks that decode has chosen, and each
 *                         raises a counter of decode's by one; so decode begins with layer 0 while prefill still runs
 *     request 2, pulled:  decode READs prefill's blocks, all layers at once; a notification tells prefill that it may
 *                         reuse them
 *
 * Afterwards each side has checked every byte. The exit status is 0 when all is well.
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

enum { LAYERS = 8, BLOCKS = 64, BLOCK_BYTES = 4 << 10, REQUEST_BLOCKS = 6 };
enum { PAGES = LAYERS * BLOCKS, LAYER_BYTES = BLOCKS * BLOCK_BYTES, REQUEST_PAGES = LAYERS * REQUEST_BLOCKS };

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

/* What prefill computes: another value at each place. Decode's cache begins with zeros. */
static uint8_t kv_byte(uint32_t layer, uint32_t block, uint32_t at)
{
    return (uint8_t)(1 + (layer * 59 + block * 131 + at * 7 + at / 256) % 255);
}

static void compute_layer(uint8_t *cache, uint32_t layer)
{
    for (uint32_t i = 0; i < LAYER_BYTES; i++) {
        cache[(size_t)layer * LAYER_BYTES + i] = kv_byte(layer, i / BLOCK_BYTES, i % BLOCK_BYTES);
    }
}

/* Compares a layer, byte by byte, with what has to be in block `to[i]`: block `from[i]` of prefill; else zeros. */
static void check_layer(const uint8_t *cache, uint32_t layer, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    for (uint32_t block = 0; block < BLOCKS; block++) {
        int64_t source = -1;
        for (uint32_t i = 0; i < count; i++) {
            source = to[i] == block ? (int64_t)from[i] : source;
        }
        for (uint32_t at = 0; at < BLOCK_BYTES; at++) {
            uint8_t expected = source < 0 ? 0 : kv_byte(layer, (uint32_t)source, at);
            if (cache[(size_t)layer * LAYER_BYTES + (size_t)block * BLOCK_BYTES + at] != expected) {
                fprintf(stderr, "%s: block %u of layer %u is wrong at byte %u\n", role, (unsigned)block,
                        (unsigned)layer, (unsigned)at);
                exit(1);
            }
        }
    }
}

/* Numbers of a request's pages in a list of the whole cache, from one layer on. */
static void pages_of(uint32_t first_layer, uint32_t layers, const uint32_t *blocks, uint32_t *pages)
{
    for (uint32_t i = 0; i < layers * REQUEST_BLOCKS; i++) {
        pages[i] = (first_layer + i / REQUEST_BLOCKS) * BLOCKS + blocks[i % REQUEST_BLOCKS];
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
    check(hr_agent_alloc(agent, (uint64_t)LAYERS * LAYER_BYTES, "kv", &options, &cache, &error), &error,
          "allocate the cache");
    return cache;
}

/* Both caches as lists of all their pages, prepared once; a transfer selects pages by number. */
static void prepare(hr_agent_t *agent, hr_region_t *cache, hr_peer_t *peer, hr_list_t **local,
                    hr_remote_list_t **remote)
{
    hr_error_t *error;
    hr_region_info_t info;

    check(hr_peer_region(peer, "kv", &info, &error), &error, "find the peer's cache");
    hr_desc_t ours = hr_desc_strided(hr_region_id(cache), 0, BLOCK_BYTES, BLOCK_BYTES, PAGES);
    hr_desc_t theirs = hr_desc_strided(info.id, 0, BLOCK_BYTES, BLOCK_BYTES, PAGES);
    check(hr_agent_prepare(agent, &ours, 1, local, &error), &error, "prepare our cache");
    check(hr_peer_prepare(peer, &theirs, 1, remote, &error), &error, "prepare the peer's cache");
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

/* Decode: makes itself known, gets request 1 layer by layer, fetches request 2. */
static void decode(int to_prefill)
{
    role = "decode";
    hr_error_t *error;
    hr_agent_t *agent = create_agent();
    hr_region_t *cache = create_cache(agent);
    const uint8_t *bytes = (const uint8_t *)hr_region_data(cache);

    /* Its metadata names the agent, its addresses and its regions. With it go the counter and blocks for request 1. */
    uint8_t *blob;
    size_t len;
    hr_counter_t *arrived;
    check(hr_agent_counter(agent, &arrived, &error), &error, "create a counter");
    const uint64_t counter = hr_counter_id(arrived);
    check(hr_agent_metadata(agent, &blob, &len, &error), &error, "get the metadata");
    send_all(to_prefill, &len, sizeof len);
    send_all(to_prefill, blob, len);
    send_all(to_prefill, &counter, sizeof counter);
    send_all(to_prefill, DECODE_1, sizeof DECODE_1);
    hr_bytes_free(blob, len);

    /* A layer is used as soon as it is here. (An engine would look for HR_EVENT_PEER_LOST now and then.) */
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        check(hr_counter_wait(arrived, layer + 1, WAIT_NS, NULL, &error), &error, "wait for a layer");
        check_layer(bytes, layer, PREFILL_1, DECODE_1, REQUEST_BLOCKS);
        printf("decode: layer %u of request 1 is here, every byte is right\n", (unsigned)layer);
    }

    /* A notification says where request 2 lies in prefill's cache, and the event who sent it. */
    uint32_t blocks[REQUEST_BLOCKS];
    hr_event_t *event = next_notification(agent);
    if (event->data_len != sizeof blocks) {
        fail("request 2", "an unexpected notification");
    }
    memcpy(blocks, event->data, sizeof blocks);
    hr_peer_t *peer = hr_peer_clone(event->peer);
    hr_event_free(event);

    hr_list_t *local;
    hr_remote_list_t *remote;
    prepare(agent, cache, peer, &local, &remote);
    uint32_t ours[REQUEST_PAGES], theirs[REQUEST_PAGES];
    pages_of(0, LAYERS, DECODE_2, ours);
    pages_of(0, LAYERS, blocks, theirs);
    hr_xfer_options_t options;
    hr_xfer_options_init(&options, sizeof options);
    options.local_indices = ours;
    options.remote_indices = theirs;
    options.local_count = options.remote_count = REQUEST_PAGES;
    options.notif = (const uint8_t *)"request 2 was fetched";
    options.notif_len = strlen((const char *)options.notif);
    options.timeout_ns = WAIT_NS;
    hr_xfer_t *xfer;
    check(hr_peer_read(peer, local, remote, &options, &xfer, &error), &error, "read request 2");
    finish(xfer, "read request 2");

    uint32_t from[2 * REQUEST_BLOCKS], to[2 * REQUEST_BLOCKS];
    memcpy(from, PREFILL_1, sizeof PREFILL_1);
    memcpy(from + REQUEST_BLOCKS, PREFILL_2, sizeof PREFILL_2);
    memcpy(to, DECODE_1, sizeof DECODE_1);
    memcpy(to + REQUEST_BLOCKS, DECODE_2, sizeof DECODE_2);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        check_layer(bytes, layer, from, to, 2 * REQUEST_BLOCKS);
    }
    printf("decode: request 2 is here too, every byte is right\n");

    wait_for_goodbye(agent);
    hr_remote_list_free(remote);
    hr_list_free(local);
    hr_peer_free(peer);
    hr_counter_free(arrived);
    hr_region_free(cache);
    hr_agent_destroy(agent);
}

/* Shows what an error looks like: decode has no page of that number. */
static void show_an_error(hr_peer_t *peer, uint64_t region)
{
    const uint32_t beyond = PAGES;
    hr_desc_t wrong = hr_desc_paged(region, 0, BLOCK_BYTES, BLOCK_BYTES, &beyond, 1);
    hr_error_t *error;
    hr_remote_list_t *list;
    hr_status_t status = hr_peer_prepare(peer, &wrong, 1, &list, &error);

    if (status != HR_BAD_LIST || list != NULL) {
        fail("a page beyond the cache", hr_status_name(status));
    }
    printf("prefill: as it should, page %u fails: %s: %s (%s)\n", (unsigned)beyond, hr_status_name(status),
           hr_error_message(error), hr_error_retryable(error) ? "try again" : "no use in trying again");
    hr_error_free(error);
}

/* Computes the layers, and sends each on its way while the next one is computed. */
static void push_request_1(hr_peer_t *peer, uint8_t *bytes, const hr_list_t *local, const hr_remote_list_t *remote,
                           const uint32_t *blocks, uint64_t counter)
{
    hr_error_t *error;
    hr_xfer_t *xfer = NULL;

    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint32_t ours[REQUEST_BLOCKS], theirs[REQUEST_BLOCKS];
        hr_xfer_options_t options;

        compute_layer(bytes, layer);
        /* One layer at a time is under way, so that a counter at n means the first n, and not any n. */
        if (xfer != NULL) {
            finish(xfer, "write a layer");
        }
        pages_of(layer, 1, PREFILL_1, ours);
        pages_of(layer, 1, blocks, theirs);
        hr_xfer_options_init(&options, sizeof options);
        options.local_indices = ours;
        options.remote_indices = theirs;
        options.local_count = options.remote_count = REQUEST_BLOCKS;
        options.bump_counter = counter;
        options.bump_by = 1;
        check(hr_peer_write(peer, local, remote, &options, &xfer, &error), &error, "write a layer");
    }
    finish(xfer, "write the last layer");
}

/* Prefill: meets decode, pushes request 1, keeps request 2 until it was fetched. */
static void prefill(int from_decode)
{
    role = "prefill";
    hr_error_t *error;
    hr_agent_t *agent = create_agent();
    hr_region_t *cache = create_cache(agent);

    size_t len;
    receive_all(from_decode, &len, sizeof len);
    uint8_t *blob = (uint8_t *)malloc(len);
    if (blob == NULL) {
        fail("receive metadata", "out of memory");
    }
    receive_all(from_decode, blob, len);
    uint64_t counter;
    receive_all(from_decode, &counter, sizeof counter);
    uint32_t blocks[REQUEST_BLOCKS];
    receive_all(from_decode, blocks, sizeof blocks);

    hr_peer_t *peer;
    hr_list_t *local;
    hr_remote_list_t *remote;
    check(hr_agent_add_peer(agent, blob, len, &peer, &error), &error, "connect to decode");
    free(blob);
    prepare(agent, cache, peer, &local, &remote);
    char *text;
    check(hr_peer_explain(peer, local, remote, &text, &error), &error, "explain");
    printf("prefill: to %s: %s\n", hr_peer_name(peer), text);
    hr_string_free(text);

    push_request_1(peer, (uint8_t *)hr_region_data(cache), local, remote, blocks, counter);
    hr_region_info_t info;
    check(hr_peer_region(peer, "kv", &info, &error), &error, "find decode's cache");
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
