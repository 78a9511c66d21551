/*
 * What kv_handoff.c does not show, as C sees it: a directory, a callback, and an epoll(7) loop that waits for a
 * transfer, a counter and a peer at once. Two agents in one process; prints what came, in the order of the program.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <headrace.h>

static const uint64_t SECOND = UINT64_C(1000000000);

static void check(hr_status_t status, hr_error_t **error, const char *what)
{
    if (status != HR_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, hr_status_name(status), hr_error_message(*error));
        exit(1);
    }
}

static hr_agent_t *agent(const char *name, int is_strict)
{
    hr_error_t *error;
    hr_agent_t *made;
    hr_config_t config;

    hr_config_init(&config, sizeof config);
    config.name = name;
    config.flags = is_strict ? HR_CONFIG_STRICT : 0;
    config.peer_timeout_ns = 30 * SECOND;
    check(hr_agent_create(&config, &made, &error), &error, "create an agent");
    return made;
}

/* What a callback leaves for the loop. */
struct ended {
    hr_xfer_t *xfer;
    hr_status_t status;
    uint64_t bytes;
    int calls;
};

static void on_done(void *data, hr_status_t status, const hr_done_t *done, const hr_error_t *error)
{
    struct ended *ended = (struct ended *)data;
    ended->status = error == NULL ? status : hr_error_status(error);
    ended->bytes = done == NULL ? 0 : done->bytes;
    ended->calls++;
}

/* Waits for the descriptor, and clears it. */
static void turn(int loop, int fd)
{
    struct epoll_event event;
    uint64_t word;

    if (epoll_wait(loop, &event, 1, 30000) != 1 || event.data.fd != fd || read(fd, &word, sizeof word) != sizeof word) {
        fprintf(stderr, "the loop was not woken\n");
        exit(1);
    }
}

/* With an argument, any path will do. */
int main(int argc, char **argv)
{
    (void)argv;
    enum { LEN = 1 << 16 };
    hr_error_t *error;
    hr_agent_t *here = agent("here", argc == 1), *there = agent("there", argc == 1);
    hr_directory_t *directory;
    hr_registration_t *registration;
    hr_peer_t *peer;

    check(hr_directory_memory(&directory, &error), &error, "make a directory");
    check(hr_agent_publish(there, directory, 10 * SECOND, &registration, &error), &error, "publish");
    check(hr_agent_connect_by_name(here, directory, "there", &peer, &error), &error, "connect");
    printf("%s was found\n", hr_peer_name(peer));

    hr_region_t *ours, *theirs;
    hr_region_info_t info;
    hr_list_t *local;
    hr_remote_list_t *remote;
    check(hr_agent_alloc(here, LEN, "ours", NULL, &ours, &error), &error, "allocate");
    check(hr_agent_alloc(there, LEN, "theirs", NULL, &theirs, &error), &error, "allocate");
    memset(hr_region_data(ours), 42, LEN);
    check(hr_peer_sync(peer, &error), &error, "sync");
    check(hr_peer_region(peer, "theirs", &info, &error), &error, "find a region");
    hr_desc_t from = hr_desc_contiguous(hr_region_id(ours), 0, LEN), to = hr_desc_contiguous(info.id, 0, LEN);
    check(hr_agent_prepare(here, &from, 1, &local, &error), &error, "prepare");
    check(hr_peer_prepare(peer, &to, 1, &remote, &error), &error, "prepare");

    int fd, loop = epoll_create1(0);
    struct epoll_event watch;
    memset(&watch, 0, sizeof watch);
    check(hr_agent_event_fd(there, &fd, &error), &error, "get the descriptor");
    watch.events = EPOLLIN;
    watch.data.fd = fd;
    if (loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, fd, &watch) != 0) {
        perror("epoll");
        return 1;
    }

    hr_counter_t *counter;
    hr_xfer_options_t options;
    struct ended ended;
    memset(&ended, 0, sizeof ended);
    check(hr_agent_counter(there, &counter, &error), &error, "create a counter");
    hr_xfer_options_init(&options, sizeof options);
    options.bump_counter = hr_counter_id(counter);
    options.bump_by = 7;
    check(hr_peer_write(peer, local, remote, &options, &ended.xfer, &error), &error, "write");
    check(hr_xfer_on_done(ended.xfer, on_done, &ended, &error), &error, "set a callback");
    while (hr_counter_get(counter) < 7) {
        turn(loop, fd);
    }
    printf("the counter is at %u, byte %d is %d\n", (unsigned)hr_counter_get(counter), LEN - 1,
           ((const unsigned char *)hr_region_data(theirs))[LEN - 1]);
    hr_xfer_free(ended.xfer);
    printf("the callback was called %d times: %s, %u bytes\n", ended.calls, hr_status_name(ended.status),
           (unsigned)ended.bytes);

    check(hr_peer_disconnect(peer, &error), &error, "disconnect");
    for (int lost = 0; !lost;) {
        hr_event_t *event;
        while (hr_agent_poll_event(there, &event, NULL) == HR_OK) {
            lost = event->kind == HR_EVENT_PEER_LOST;
            hr_event_free(event);
        }
        if (!lost) {
            turn(loop, fd);
        }
    }
    printf("the peer left\n");

    close(loop);
    hr_counter_free(counter);
    hr_registration_free(registration);
    hr_directory_free(directory);
    hr_remote_list_free(remote);
    hr_list_free(local);
    hr_peer_free(peer);
    hr_region_free(ours);
    hr_region_free(theirs);
    hr_agent_destroy(here);
    hr_agent_destroy(there);
    return 0;
}
