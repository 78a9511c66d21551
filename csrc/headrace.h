/*
 * headrace.h: the C interface of Headrace, which moves bytes between the memories of processes.
 * Made by `ci/header --write` from transfer-core/capi; do not edit. Apache-2.0.
 *
 * csrc/example/kv_handoff.c shows the whole way of a KV cache from prefill to decode. In short:
 *
 *     hr_agent_create()                              one agent in each process
 *     hr_agent_alloc(), hr_agent_register()          memory for the KV cache
 *     hr_agent_metadata() -> hr_agent_add_peer()     one side carries its blob to the other; or hr_agent_connect(),
 *                                                    or both look into a directory: hr_agent_publish()
 *     hr_agent_prepare(), hr_peer_prepare()          the pages of both sides, checked once
 *     hr_peer_write(), hr_peer_read()                moves a selection of them
 *     hr_xfer_wait(), hr_agent_wait_event()          until it is done; until the peer's notification is here
 *     hr_agent_counter(), hr_counter_wait()          until n layers are here, without a notification for each
 *     hr_xfer_on_done(), hr_agent_event_fd()         a callback for a transfer; all of that in an epoll(7) loop
 *
 * Failures. A function that can fail returns an hr_status_t and takes an `hr_error_t **error` at the end, which may be
 * NULL. Else it is written each time: NULL, or an error object to be freed with hr_error_free(), where the status is
 * below zero. Results are written only when the call succeeds; handles are NULL otherwise. A NULL or misaligned
 * pointer where one is needed gives HR_INVALID_ARGUMENT, in functions without a status what their comment says.
 * A bug of the library gives HR_PANIC and never unwinds into the caller. Only where memory for the library's own small
 * objects is short does the process abort.
 *
 * Ownership. What a function gives through a pointer to a pointer is the caller's, to be freed once by the function
 * that its comment names; the matching free function takes NULL as well. What a function returns directly belongs to
 * the handle that it was asked of, and lives as long. Arguments are only looked at during the call, unless their
 * comment says otherwise. Handles may be freed in any order: what still needs another one keeps that alive, and what
 * outlives its agent fails with a status. A handle must not be used after it was freed, and not be freed twice.
 *
 * Threads. Every function may be called from any thread, at the same time with the same handles, with one exception:
 * hr_agent_destroy() and the functions that end in _free have to be the last call with their handle, and to begin when
 * all others with it have returned. Functions block only where their comment says so. The application is called back
 * only where it asked for it, by hr_xfer_on_done(). Agents do not survive fork(2).
 *
 * Values. Text is UTF-8 and ends with a NUL. Sizes and offsets are in bytes, times in nanoseconds; HR_FOREVER is a
 * timeout without end. Structs that begin with a size field grow at their end in later versions: fill them with their
 * init function. The values of enums never change; a switch over one needs a default.
 */


#ifndef HEADRACE_H
#define HEADRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Version of this header: programs and libraries of one major version work together.
#define HR_VERSION_MAJOR 0

// Grows when something is added.
#define HR_VERSION_MINOR 1

// Grows when something is mended.
#define HR_VERSION_PATCH 0

// A timeout that never ends.
#define HR_FOREVER UINT64_MAX

// Bit of hr_config_t.flags: meets peers of other hosts although there is no key: whoever reaches the port can read and
// write every region. Without it and without a key, a tcp_listen beyond loopback is an error.
#define HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY 1

// Bit of hr_config_t.flags: where the best path to a peer's memory is ruled out by something that could be mended,
// preparing a list fails with HR_FALLBACK_REFUSED. Without it the next path is taken, and hr_peer_explain() tells. Paths
// that are left out of hr_config_t.paths do not count, nor do those that only lead within one host.
#define HR_CONFIG_STRICT 2

// Bit of hr_config_t.flags: what goes over data connections is encrypted and authenticated; within one host nothing
// changes. It is enough that one of two agents asks for it. Needs a key. It takes a core for every few GB/s, at both
// ends, and 600 KiB of memory for each data connection.
#define HR_CONFIG_ENCRYPT_DATA 4

// Bytes behind hr_config_t.key.
#define HR_KEY_SIZE 32

// Bit of hr_region_options_t.flags: the region consists of huge pages, from the administrator's pool
// (vm.nr_hugepages). Where they are missing it does not come to be. Only for memory that the agent allocates.
#define HR_REGION_HUGE_PAGES 1

// Bytes of hr_region_info_t.label, with the NUL.
#define HR_LABEL_SIZE 256

// How a call ended. Zero and above is no failure. The hundreds say what the caller can do:
// -1xx mend the call; -2xx not to be had here; -3xx try again, perhaps elsewhere; -4xx it was ended, from here or
// by whom it belongs to; -5xx a fault of this machine; -6xx a fault of the library. Values never change their
// meaning.
typedef enum {
    // Done.
    HR_OK = 0,
    // Not yet: a transfer goes on, no event has come, a counter is not there. Not a failure: there is no error object.
    HR_PENDING = 1,
    // A pointer is NULL or misaligned, text is not UTF-8, a struct's size field is not set, and the like.
    HR_INVALID_ARGUMENT = -101,
    // A field of the configuration does not hold.
    HR_INVALID_CONFIG = -102,
    // Text that is no address.
    HR_INVALID_ADDRESS = -103,
    // A descriptor list, or a selection of it, does not fit the memory that it names.
    HR_BAD_LIST = -104,
    // The two lists of a transfer have different numbers of bytes.
    HR_LENGTH_MISMATCH = -105,
    // An access outside a region.
    HR_OUT_OF_BOUNDS = -106,
    // The region was closed.
    HR_REGION_CLOSED = -107,
    // A list that was prepared by another agent, or for another peer.
    HR_WRONG_AGENT = -108,
    // Over a limit of the library; the message names it.
    HR_TOO_LARGE = -109,
    // A write to a region whose owner lets peers only read it.
    HR_READ_ONLY = -110,
    // The two agents speak no version of the protocol in common; the message says which one to update.
    HR_VERSION_MISMATCH = -201,
    // The other end broke the protocol, or is no agent at all.
    HR_PROTOCOL = -202,
    // Every path to the peer is ruled out; the message says why each.
    HR_NO_PATH = -203,
    // The peer has no region of that label, or the directory no agent of that name.
    HR_NOT_FOUND = -204,
    // A key is missing on one of the two sides, or they are on two hosts and neither has one.
    HR_AUTH_REQUIRED = -205,
    // The other end does not have the same key.
    HR_AUTH_FAILED = -206,
    // The best path to the peer is ruled out by something that could be mended, and HR_CONFIG_STRICT is set; the message
    // says by what.
    HR_FALLBACK_REFUSED = -207,
    // Nobody answers there.
    HR_UNREACHABLE = -301,
    // The peer died, restarted, froze or left.
    HR_PEER_LOST = -302,
    // A slice of the transfer failed; the message says which and how.
    HR_TRANSFER_FAILED = -303,
    // The transfer's deadline passed. Nothing touches its local memory any more.
    HR_DEADLINE = -304,
    // An answer did not come in time.
    HR_TIMED_OUT = -305,
    // The peer does not take notifications as fast as they come, or this one is too long.
    HR_NOT_NOTIFIED = -306,
    // A peer has not let go of a region in time. It must be taken to still touch the memory.
    HR_REGION_BUSY = -307,
    // A directory could not help; hr_error_retryable() says whether trying again can.
    HR_DIRECTORY = -308,
    // The transfer was cancelled. Nothing touches its memory any more.
    HR_CANCELLED = -401,
    // The agent was destroyed.
    HR_AGENT_CLOSED = -402,
    // What the peer had there is not there any more: it has revoked a block that the transfer touches. Bytes that were
    // read are not to be used; ask the peer anew.
    HR_STALE = -403,
    // The name in the directory belongs to another agent now, or to another life of this one, which registered later.
    HR_SUPERSEDED = -404,
    // A system call failed; see hr_error_os_code().
    HR_OS = -501,
    // The library failed in itself, which is a bug of it; the message says where. Handles of the call may be freed.
    HR_PANIC = -601,
    // A failure that this version of the C interface has no name for; see the message.
    HR_OTHER = -602,
} hr_status_t;

// A way for bytes to go. Each is a bit, for hr_config_t.paths.
typedef enum {
    // None, or one that this header does not know.
    HR_PATH_OTHER = 0,
    // The peer's memory is mapped here: one copy at memory speed, without the peer's help.
    HR_PATH_SHARED_MEMORY = 1,
    // The kernel copies between the two processes, without the peer's help.
    HR_PATH_PROCESS_MEMORY = 2,
    // Sockets; the peer's agent takes part.
    HR_PATH_TCP = 4,
} hr_path_t;

// Where the memory of a region came from.
typedef enum {
    // One that this header does not know.
    HR_REGION_OTHER = 0,
    // Its agent allocated it; peers on the same host can map it.
    HR_REGION_ALLOCATED = 1,
    // Its application registered it.
    HR_REGION_FOREIGN = 2,
} hr_region_kind_t;

// What peers may do with a region.
typedef enum {
    // One that this header does not know.
    HR_ACCESS_OTHER = 0,
    // Read it.
    HR_ACCESS_READ_ONLY = 1,
    // Read and write it.
    HR_ACCESS_READ_WRITE = 2,
} hr_access_t;

// What happened.
typedef enum {
    // Something that this header does not know.
    HR_EVENT_OTHER = 0,
    // A peer's notification arrived. Data that it speaks of has landed.
    HR_EVENT_NOTIF = 1,
    // A peer can be used.
    HR_EVENT_PEER_UP = 2,
    // A peer is gone; all transfers with it have ended or are about to.
    HR_EVENT_PEER_LOST = 3,
} hr_event_kind_t;

// The shape of a descriptor.
typedef enum {
    // One span.
    HR_DESC_CONTIGUOUS = 1,
    // Spans at one distance.
    HR_DESC_STRIDED = 2,
    // A span for each listed page.
    HR_DESC_PAGED = 3,
} hr_desc_kind_t;

// One endpoint in one process: it owns registered memory, meets peers, and moves bytes to and from theirs. It runs
// threads of its own, so create it after fork(2), never before.
typedef struct hr_agent_t hr_agent_t;

// A number of this agent that peers raise with their transfers: see hr_xfer_options_t.bump_by. It only grows, and is
// raised exactly once by each transfer that is done, after its last byte is in place, on every path and over any
// retry. So a counter that each layer of a request raises by one says that the first n layers are here, if the layers
// are sent one after the other, or that n of them are, if they are sent at once.
typedef struct hr_counter_t hr_counter_t;

// Maps names of agents to their metadata. What it says is a hint: whoever looks an agent up goes to it, and the agent
// itself says who it is. So a stale or forged entry costs a failed connection.
typedef struct hr_directory_t hr_directory_t;

// What failed. Made by the call that failed, for whoever passed it an `hr_error_t **`; freed with hr_error_free().
typedef struct hr_error_t hr_error_t;

// A list over regions of this agent, checked and bound once. Keep it and use it for many transfers.
typedef struct hr_list_t hr_list_t;

// Another agent that this one is connected to, in one of its lives. Several handles may name the same peer.
typedef struct hr_peer_t hr_peer_t;

// Registered memory of an agent. Peers that were met may access it at any time.
typedef struct hr_region_t hr_region_t;

// An agent's place in a directory, renewed until it is freed. A name belongs to whoever published last.
typedef struct hr_registration_t hr_registration_t;

// A list over regions of a peer, checked, bound, and with its path chosen once.
typedef struct hr_remote_list_t hr_remote_list_t;

// A posted transfer. It reaches one terminal state; from then on nothing touches its local memory.
typedef struct hr_xfer_t hr_xfer_t;

// Where in a transfer it failed, for HR_TRANSFER_FAILED and HR_STALE.
typedef struct {
    // Which descriptor of the remote list, counted from 0.
    uint32_t desc;
    // How often these bytes had been sent; more than once where a connection broke.
    uint32_t attempts;
    // Where in the region of that descriptor, in bytes: the first place that failed, as far as that is known.
    uint64_t offset;
    // The data connection that carried them, counted from 0; -1 where none did, as within one host.
    int64_t rail;
} hr_failure_t;

// How an agent behaves. hr_config_init() fills in the defaults; set a name and change what you need. It is read by
// hr_agent_create() only, and what it points to need not live longer than that call.
typedef struct {
    // sizeof(hr_config_t); set by hr_config_init().
    size_t size;
    // Name of the agent, for people; it need not be unique. 1 to 255 bytes. There is no default.
    const char *name;
    // Where to accept peers by TCP, as IP:PORT; port 0 takes a free one. Default "127.0.0.1:0". NULL: only peers of
    // this host can connect.
    const char *tcp_listen;
    // Bytes that describe the application to its peers (layout of its KV cache, say). At most 64 KiB. Default none.
    const uint8_t *app_metadata;
    // How many bytes.
    size_t app_metadata_len;
    // HR_KEY_SIZE random bytes that all agents have in common: each proves to the other that it has them. Default
    // NULL: no key, and then only peers of this host are met. Whoever has it may do everything; payload travels as it
    // is, unless HR_CONFIG_ENCRYPT_DATA is set.
    const uint8_t *key;
    // Paths that transfers may take: hr_path_t values, or'ed. Default all.
    uint32_t paths;
    // HR_CONFIG_ values, or'ed. Default none.
    uint32_t flags;
    // Data connections to each peer, 1 to 64. Default 2. Each costs a socket on both sides.
    uint32_t tcp_streams;
    // Kernel buffer of each data connection, in each direction. Default 0: the kernel sizes them to the path.
    uint32_t tcp_buffer_bytes;
    // Slices of one transfer in flight, 1 to 1024. Default 16.
    uint32_t slices_in_flight_max;
    // Threads that copy within one host, for transfers that nobody waits for; at most 64. Default 0: by the number of
    // cores.
    uint32_t copy_threads;
    // Events that may wait for the application. When it is full, peers are not read from until some are taken, so
    // nothing is lost. Default 65536.
    uint64_t events_max;
    // Transfers within one host of at most so many bytes are copied inside the posting call, which saves the
    // hand-over to another thread. Default 1 MiB, 20 to 100 microseconds.
    uint64_t inline_bytes_max;
    // Bytes of a slice, 4 KiB to 64 MiB: the unit of progress, cancellation and striping. Default 2 MiB.
    uint64_t slice_bytes_max;
    // Bytes that may wait to be sent to a peer before notifications are refused, 64 KiB to 1 GiB. Default 4 MiB.
    uint64_t unsent_bytes_max;
    // How long a transfer may take, unless it says otherwise, in nanoseconds. Default 30 s.
    uint64_t transfer_timeout_ns;
    // How long connecting to a peer may take, in nanoseconds, 10 ms to an hour. Default 5 s.
    uint64_t connect_timeout_ns;
    // A peer that says nothing for so many nanoseconds, 50 ms to an hour, is lost. Default 1 s; a quarter of it is the
    // heartbeat.
    uint64_t peer_timeout_ns;
    // For so many nanoseconds after data has moved, whoever drives the agent looks again and again instead of sleeping,
    // and hr_xfer_poll() drives it too. It saves the wake-up of a thread for each message, some microseconds, at the
    // price of a core. Default 0: nobody ever spins. At most a second.
    uint64_t busy_poll_ns;
    // Blocks that all regions of the agent together may have (hr_region_options_t.block_bytes). Default 2^24, which is
    // the most. Each has 8 bytes in a file in memory, whose pages cost nothing before they are used; it counts against
    // RLIMIT_FSIZE and address space.
    uint64_t blocks_max;
    // Instead of key: a file that holds it, as 64 hexadecimal digits or HR_KEY_SIZE bytes, and that nobody but its owner
    // may read or write. Default NULL. Both together are an error.
    const char *key_file;
    // Threads that carry transfers over sockets, of more than about a MiB; smaller ones are carried by whoever drives the
    // agent. At most 64; 0: none. Default -1: one for each core, and no more than tcp_streams. They are started by the
    // first such transfer, at either end, and sleep while there is none.
    int64_t tcp_threads;
} hr_config_t;

// What a region is to be. hr_region_options_init() fills in the defaults.
typedef struct {
    // sizeof(hr_region_options_t); set by hr_region_options_init().
    size_t size;
    // What peers may do with it: an hr_access_t. Default HR_ACCESS_READ_WRITE. Where it is HR_ACCESS_READ_ONLY, memory
    // that the agent allocates cannot even be mapped writable by a peer, and everybody's writes are refused.
    uint32_t access;
    // HR_REGION_HUGE_PAGES or 0, the default.
    uint32_t flags;
    // Bytes of a block, such as those of a page of a KV cache: what hr_region_revoke() revokes at the least. Default 0:
    // all of the region. An agent has room for 2^24 blocks, each of which costs it 8 bytes.
    uint64_t block_bytes;
    // The node whose memory it gets, on a machine that has several. Default -1: any. Only for memory that the agent
    // allocates.
    int64_t numa_node;
} hr_region_options_t;

// A rule for spans of one region. Make it with hr_desc_contiguous(), hr_desc_strided() or hr_desc_paged().
typedef struct {
    // The region's name, of hr_region_id() or hr_region_info_t.
    uint64_t region;
    // Where the first span, or page 0, begins in the region.
    uint64_t offset;
    // Bytes of each span.
    uint64_t len;
    // From the begin of one span, or page, to that of the next.
    uint64_t stride;
    // For remote lists, what hr_region_generation() or hr_region_revoke() told the owner. 0, which the functions that
    // make descriptors put here: as it was when it was registered.
    uint64_t generation;
    // HR_DESC_PAGED: which pages, in the order in which they are moved. Read while the list is prepared only.
    const uint32_t *pages;
    // How many spans.
    uint32_t count;
    // An hr_desc_kind_t.
    uint32_t kind;
} hr_desc_t;

// A peer's region, as its owner describes it.
typedef struct {
    // Its name, for descriptors.
    uint64_t id;
    // Its length in bytes.
    uint64_t len;
    // Bytes of a block: what its owner revokes at the least.
    uint64_t block_bytes;
    // Where its memory came from.
    hr_region_kind_t kind;
    // What this agent may do with it.
    hr_access_t access;
    // What the owner's application calls it, with a NUL at its end.
    char label[HR_LABEL_SIZE];
} hr_region_info_t;

// How a transfer is done. hr_xfer_options_init() fills in the defaults; every field but size is 0 or NULL then. What it
// points to is copied while posting.
typedef struct {
    // sizeof(hr_xfer_options_t); set by hr_xfer_options_init().
    size_t size;
    // Moves only these spans of the local list, by index, in this order. NULL: all. Both selections or none.
    const uint32_t *local_indices;
    // How many.
    size_t local_count;
    // Moves only these spans of the remote list. NULL: all.
    const uint32_t *remote_indices;
    // How many.
    size_t remote_count;
    // Sent to the peer's application once the data has landed (for a read: here), exactly once, whether this side still
    // looks at the transfer or not. At most 64 KiB. NULL: none.
    const uint8_t *notif;
    // How many bytes.
    size_t notif_len;
    // How long it may take, in nanoseconds. 0: the agent's transfer_timeout_ns.
    uint64_t timeout_ns;
    // Raises the peer's counter of this name, of hr_counter_id() there, once the data has landed, as notif is sent and
    // in order with it. A counter that the peer has freed meanwhile is passed over.
    uint64_t bump_counter;
    // By how much. 0: no counter is raised.
    uint64_t bump_by;
} hr_xfer_options_t;

// A transfer that is done.
typedef struct {
    // Bytes that were moved.
    uint64_t bytes;
    // From posting to the last byte in place, in nanoseconds.
    uint64_t elapsed_ns;
    // The path that they took.
    hr_path_t path;
} hr_done_t;

// What hr_xfer_on_done() has called: `data` as it was given there, how the transfer ended as hr_xfer_poll() would say
// it, and what goes with that: `done` for HR_OK, `error` below zero, else NULL. Both are gone when it returns.
typedef void (*hr_xfer_callback_t)(void *data, hr_status_t status, const hr_done_t *done, const hr_error_t *error);

// Something that happened. Made by the library only, so that it may grow at its end; freed with hr_event_free(), and
// with it everything that it points to.
typedef struct {
    // What.
    hr_event_kind_t kind;
    // Which peer. Belongs to the event; hr_peer_clone() makes a handle of your own. NULL for HR_EVENT_OTHER.
    hr_peer_t *peer;
    // HR_EVENT_NOTIF: what it says.
    const uint8_t *data;
    // How many bytes.
    size_t data_len;
    // HR_EVENT_PEER_LOST: how it was noticed. Belongs to the event. Else NULL.
    const hr_error_t *reason;
} hr_event_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the library that is linked, such as "0.1.0". Lives as long as the program.
const char *hr_version(void);

// Frees text that a function gave through a `char **`. NULL is fine.
void hr_string_free(char *text);

// Frees bytes that a function gave through a `uint8_t **`, with the length that came with them. NULL is fine.
void hr_bytes_free(uint8_t *bytes, size_t len);

// Its status; HR_OK for NULL.
hr_status_t hr_error_status(const hr_error_t *error);

// What and where, in English, without a line end. Belongs to the error. "no error" for NULL.
const char *hr_error_message(const hr_error_t *error);

// Whether the same call may succeed later, or with another peer. False for NULL.
bool hr_error_retryable(const hr_error_t *error);

// The errno behind HR_OS, and behind HR_TRANSFER_FAILED where the kernel refused to move the bytes; 0 for other errors
// and for NULL.
int32_t hr_error_os_code(const hr_error_t *error);

// Whether it says where in a transfer it failed; if so, writes that to `failure`. False for other errors and for NULL.
bool hr_error_failure(const hr_error_t *error, hr_failure_t *failure);

// Frees an error. NULL is fine. Errors that belong to an event are freed with that.
void hr_error_free(hr_error_t *error);

// The name of a status, such as "HR_OK"; "unknown status" for a number that is none. Lives as long as the program.
const char *hr_status_name(int32_t status);

// Creates an agent: listens, and starts its threads. Takes well under a millisecond.
// End it with hr_agent_destroy().
// Errors: HR_INVALID_CONFIG; HR_OS where the address is taken or a resource is short.
hr_status_t hr_agent_create(const hr_config_t *config, hr_agent_t **agent, hr_error_t **error);

// Says goodbye to the peers, ends every transfer with HR_AGENT_CLOSED, joins the agent's threads and frees the handle.
// Other handles of the agent stay valid, in any order, until they are freed: their calls fail with HR_AGENT_CLOSED or
// HR_PEER_LOST, and allocated regions keep their memory. Blocks for the slices in flight. Not from a callback. NULL is
// fine.
void hr_agent_destroy(hr_agent_t *agent);

// Its name. Belongs to the agent. NULL for NULL.
const char *hr_agent_name(const hr_agent_t *agent);

// Where peers reach it, for hr_agent_connect(): "tcp://HOST:PORT", or "unix:@NAME" within this host. Belongs to the
// agent. NULL where it does not listen, and for NULL.
const char *hr_agent_address(const hr_agent_t *agent);

// Which life of it: 16 random bytes, drawn when it was created.
hr_status_t hr_agent_incarnation(const hr_agent_t *agent, uint8_t *incarnation, hr_error_t **error);

// Everything that a peer needs to know, as a versioned blob for the application to carry to the peer's
// hr_agent_add_peer(). Regions registered later are told over the agents' own connection.
// Free the blob with hr_bytes_free().
hr_status_t hr_agent_metadata(const hr_agent_t *agent, uint8_t **blob, size_t *len, hr_error_t **error);

// Connects to the agent at `address` ("tcp://HOST:PORT" or "unix:@NAME"), or gives the peer where it is connected
// already. When it returns, both sides know each other. Blocks, up to connect_timeout_ns, and up to peer_timeout_ns
// for a peer that freezes. Free the peer with hr_peer_free().
// Errors: HR_INVALID_ADDRESS, HR_UNREACHABLE, HR_VERSION_MISMATCH, HR_PROTOCOL, HR_AUTH_REQUIRED, HR_AUTH_FAILED,
// HR_PEER_LOST where it goes in the middle, HR_OS.
hr_status_t hr_agent_connect(hr_agent_t *agent, const char *address, hr_peer_t **peer, hr_error_t **error);

// Connects to the agent that a blob of hr_agent_metadata() speaks of. Blocks like hr_agent_connect().
// Free the peer with hr_peer_free().
// Errors: as hr_agent_connect(); HR_PROTOCOL for a damaged blob; HR_UNREACHABLE where another agent is found at its
// addresses, because the one that made the blob is gone.
hr_status_t hr_agent_add_peer(hr_agent_t *agent, const uint8_t *blob, size_t len, hr_peer_t **peer, hr_error_t **error);

// The peers that are connected: writes up to `capacity` new handles, each to be freed with hr_peer_free(), and to
// `count` how many peers there are. `peers` may be NULL where `capacity` is 0.
hr_status_t hr_agent_peers(const hr_agent_t *agent,
                           hr_peer_t **peers,
                           size_t capacity,
                           size_t *count,
                           hr_error_t **error);

// Fills in the defaults. Call it as hr_config_init(&config, sizeof config). HR_INVALID_ARGUMENT for NULL and for a
// size that is none.
hr_status_t hr_config_init(hr_config_t *config, size_t size);

// Fills in the defaults. Call it as hr_region_options_init(&options, sizeof options). HR_INVALID_ARGUMENT for NULL and
// for a size that is none.
hr_status_t hr_region_options_init(hr_region_options_t *options, size_t size);

// Allocates zeroed memory that peers on this host can map, which is the fastest way between processes. Every page gets
// its memory now, at a few GB/s. `label` is for peers to find it by: at most 255 bytes, not necessarily unique.
// `options` may be NULL.
// Free the region with hr_region_free().
// Errors: HR_OS where memory, huge pages or the node are not to be had; HR_TOO_LARGE.
hr_status_t hr_agent_alloc(hr_agent_t *agent,
                           uint64_t len,
                           const char *label,
                           const hr_region_options_t *options,
                           hr_region_t **region,
                           hr_error_t **error);

// Registers memory of yours. It has to stay mapped, readable and writable until hr_region_close() has returned HR_OK
// or hr_agent_destroy() has returned, and peers write it at any time until then.
// `options` may be NULL. Free the region with hr_region_free(), which leaves the memory itself to you.
// Errors: HR_TOO_LARGE; HR_INVALID_CONFIG for options that memory of yours cannot have.
hr_status_t hr_agent_register(hr_agent_t *agent,
                              void *addr,
                              size_t len,
                              const char *label,
                              const hr_region_options_t *options,
                              hr_region_t **region,
                              hr_error_t **error);

// Its name in descriptors, here and at peers. 0 for NULL.
uint64_t hr_region_id(const hr_region_t *region);

// Its length in bytes. 0 for NULL.
size_t hr_region_len(const hr_region_t *region);

// Its label. Belongs to the region. NULL for NULL.
const char *hr_region_label(const hr_region_t *region);

// Its first byte. Allocated memory stays there until hr_region_free(), also after hr_region_close() and
// hr_agent_destroy(). Bytes that a peer writes meanwhile are a data race like any other: look at what a
// notification or the end of a transfer says has landed. NULL for NULL.
void *hr_region_data(const hr_region_t *region);

// Copies bytes in, from memory outside of the region. No system call, no lock.
// Errors: HR_OUT_OF_BOUNDS.
hr_status_t hr_region_write(hr_region_t *region, uint64_t offset, const void *data, size_t len, hr_error_t **error);

// Copies bytes out, to memory outside of the region. No system call, no lock.
// Errors: HR_OUT_OF_BOUNDS.
hr_status_t hr_region_read(const hr_region_t *region, uint64_t offset, void *data, size_t len, hr_error_t **error);

// The generation that names what stands in the region now. A peer that is to access it is told this number along with
// the place, and puts it into hr_desc_t.generation; once one of the blocks is revoked, its accesses to that block fail
// with HR_STALE. One counter serves all regions of an agent. 0 for NULL.
uint64_t hr_region_generation(const hr_region_t *region);

// Takes the blocks that `len` bytes at `offset` touch back from everybody who was told an earlier generation: call it
// before their memory is used for something else. When it has returned HR_OK, no earlier peer writes there any more,
// and a peer that is still reading will see HR_STALE instead of what is written next. Writes the new generation to
// `generation`, which may be NULL. Blocks only for writers that are in the middle of a slice.
// Errors: HR_OUT_OF_BOUNDS; HR_REGION_BUSY where a writer does not leave within peer_timeout_ns, since its process is
// stopped: the generation is void, but that one may still write; HR_AGENT_CLOSED.
hr_status_t hr_region_revoke(hr_region_t *region,
                             uint64_t offset,
                             uint64_t len,
                             uint64_t *generation,
                             hr_error_t **error);

// Deregisters the region and returns when no transfer and no peer touches it any more. From the call on, new transfers
// that name it fail, here with HR_REGION_CLOSED, at peers with HR_STALE, HR_BAD_LIST or HR_TRANSFER_FAILED. Blocks, at
// most for peer_timeout_ns. Calling it again does no harm.
// Errors: HR_REGION_BUSY when it took longer: a peer that does not answer may still touch the memory.
hr_status_t hr_region_close(hr_region_t *region, hr_error_t **error);

// Frees the handle, and deregisters the region without waiting. Allocated memory lives on for those who are still
// inside; for registered memory call hr_region_close() first. NULL is fine.
void hr_region_free(hr_region_t *region);

// One span: `len` bytes at `offset`.
hr_desc_t hr_desc_contiguous(uint64_t region, uint64_t offset, uint64_t len);

// `count` spans of `len` bytes, each `stride` bytes after the last, the first at `offset`.
hr_desc_t hr_desc_strided(uint64_t region, uint64_t offset, uint64_t len, uint64_t stride, uint32_t count);

// A span of `len` bytes for each of the `count` indices in `pages`: page i lies at `offset + i * stride`.
// The indices have to stay where they are until the list is prepared.
hr_desc_t hr_desc_paged(uint64_t region,
                        uint64_t offset,
                        uint64_t len,
                        uint64_t stride,
                        const uint32_t *pages,
                        uint32_t count);

// Checks descriptors against this agent's regions and binds them to their memory, which the list keeps. Costs about a
// nanosecond for each page, and 4 bytes; the descriptors and their pages are copied.
// Free the list with hr_list_free().
// Errors: HR_BAD_LIST, HR_REGION_CLOSED.
hr_status_t hr_agent_prepare(hr_agent_t *agent,
                             const hr_desc_t *descs,
                             size_t count,
                             hr_list_t **list,
                             hr_error_t **error);

// Checks descriptors against the peer's regions, chooses the path for them and, for shared memory, maps what was not
// mapped yet. Blocks, up to connect_timeout_ns, only for a region that is new here.
// Free the list with hr_remote_list_free().
// Errors: HR_BAD_LIST, HR_REGION_CLOSED, HR_NO_PATH, HR_FALLBACK_REFUSED, HR_PEER_LOST, HR_TIMED_OUT, HR_OS from
// mapping.
hr_status_t hr_peer_prepare(hr_peer_t *peer,
                            const hr_desc_t *descs,
                            size_t count,
                            hr_remote_list_t **list,
                            hr_error_t **error);

// How many spans it has. 0 for NULL.
uint64_t hr_list_count(const hr_list_t *list);

// How many bytes all its spans have. 0 for NULL.
uint64_t hr_list_bytes(const hr_list_t *list);

// Frees a list. Transfers that were posted with it go on. NULL is fine.
void hr_list_free(hr_list_t *list);

// How many spans it has. 0 for NULL.
uint64_t hr_remote_list_count(const hr_remote_list_t *list);

// How many bytes all its spans have. 0 for NULL.
uint64_t hr_remote_list_bytes(const hr_remote_list_t *list);

// The path that transfers with it take. HR_PATH_OTHER for NULL.
hr_path_t hr_remote_list_path(const hr_remote_list_t *list);

// Frees a list. Transfers that were posted with it go on. NULL is fine.
void hr_remote_list_free(hr_remote_list_t *list);

// Another handle of the same peer, to be freed like it. NULL for NULL.
hr_peer_t *hr_peer_clone(const hr_peer_t *peer);

// Frees the handle; the connection stays. NULL is fine.
void hr_peer_free(hr_peer_t *peer);

// Its name, for people. Belongs to the handle. NULL for NULL.
const char *hr_peer_name(const hr_peer_t *peer);

// Which life of it, as 16 bytes: two handles name the same peer where these are equal.
hr_status_t hr_peer_incarnation(const hr_peer_t *peer, uint8_t *incarnation, hr_error_t **error);

// What its application says of itself (hr_config_t.app_metadata there). Writes the length to `len`, which may be NULL.
// Belongs to the handle. NULL for NULL.
const uint8_t *hr_peer_app_metadata(const hr_peer_t *peer, size_t *len);

// Whether it is connected. A peer that was lost never comes back; connect again to its next incarnation. False for
// NULL.
bool hr_peer_is_up(const hr_peer_t *peer);

// Its first region of that label, as known here; after hr_peer_sync() that is at least what it had before.
// Errors: HR_NOT_FOUND.
hr_status_t hr_peer_region(const hr_peer_t *peer, const char *label, hr_region_info_t *info, hr_error_t **error);

// Its regions as known here: writes up to `capacity` of them, and to `count` how many there are. `infos` may be NULL
// where `capacity` is 0.
hr_status_t hr_peer_regions(const hr_peer_t *peer,
                            hr_region_info_t *infos,
                            size_t capacity,
                            size_t *count,
                            hr_error_t **error);

// Returns when the peer's agent has taken in all that was sent to it, and this one all that the peer had sent by then:
// its regions are known, its notifications are among the events. Blocks for one round trip.
// Errors: HR_PEER_LOST, HR_TIMED_OUT after peer_timeout_ns.
hr_status_t hr_peer_sync(hr_peer_t *peer, hr_error_t **error);

// Sends bytes, at most 64 KiB, to the peer's application, which gets them as an HR_EVENT_NOTIF. They arrive in order
// with other notifications. The bytes are copied.
// Errors: HR_NOT_NOTIFIED, HR_PEER_LOST, HR_AGENT_CLOSED. A peer that is lost later may not have got them.
hr_status_t hr_peer_notify(hr_peer_t *peer, const uint8_t *data, size_t len, hr_error_t **error);

// Ends the connection. Both sides see the peer as lost. Free the handle all the same.
hr_status_t hr_peer_disconnect(hr_peer_t *peer, hr_error_t **error);

// Which path a transfer between the two lists takes, and why not another, in English for a log.
// Free the text with hr_string_free().
// Errors: HR_WRONG_AGENT for lists of another peer.
hr_status_t hr_peer_explain(const hr_peer_t *peer,
                            const hr_list_t *local,
                            const hr_remote_list_t *remote,
                            char **text,
                            hr_error_t **error);

// Fills in the defaults. Call it as hr_xfer_options_init(&options, sizeof options). HR_INVALID_ARGUMENT for NULL and
// for a size that is none.
hr_status_t hr_xfer_options_init(hr_xfer_options_t *options, size_t size);

// Starts a transfer from the peer's spans into local ones. Within one host, up to inline_bytes_max bytes are copied
// inside the call; everything else is handed to the agent's threads, and the call returns at once. `options` may be
// NULL. Lists and peer may be freed at once; the transfer keeps what it needs. Free it with hr_xfer_free().
// Costs an allocation for the handle and one for a notification, and takes no lock that transfers share. Neighbours on
// both sides move as one, so a list of many small spans in order costs little more than one large span.
// Errors: HR_LENGTH_MISMATCH, HR_BAD_LIST, HR_WRONG_AGENT, HR_REGION_CLOSED, HR_READ_ONLY, HR_PEER_LOST, HR_NOT_NOTIFIED
// for a notification that is too long, HR_AGENT_CLOSED. Nothing was moved then. What fails later is told by the
// transfer.
hr_status_t hr_peer_read(hr_peer_t *peer,
                         const hr_list_t *local,
                         const hr_remote_list_t *remote,
                         const hr_xfer_options_t *options,
                         hr_xfer_t **xfer,
                         hr_error_t **error);

// Starts a transfer from local spans into the peer's. All else is as for hr_peer_read().
hr_status_t hr_peer_write(hr_peer_t *peer,
                          const hr_list_t *local,
                          const hr_remote_list_t *remote,
                          const hr_xfer_options_t *options,
                          hr_xfer_t **xfer,
                          hr_error_t **error);

// How it ended, or HR_PENDING while it goes on. Tells the same each time. `done`, which may be NULL, is written for
// HR_OK only. Costs a load while it goes on; with busy_poll_ns also a look at the agent's sockets.
// Errors: HR_PEER_LOST, HR_TRANSFER_FAILED, HR_STALE, HR_DEADLINE, HR_CANCELLED, HR_AGENT_CLOSED.
hr_status_t hr_xfer_poll(const hr_xfer_t *xfer, hr_done_t *done, hr_error_t **error);

// The same, after waiting up to `timeout_ns` nanoseconds for its end. Meanwhile the calling thread does what there is to
// do, so that nobody has to wake it: within one host it copies for the transfer, so that the timeout may be exceeded by
// one slice; over sockets it does the agent's work for all transfers and peers.
hr_status_t hr_xfer_wait(const hr_xfer_t *xfer,
                         uint64_t timeout_ns,
                         hr_done_t *done,
                         hr_error_t **error);

// Asks for its end; blocks for no more than a slice that is just being moved. The end is reached when nothing touches
// the memory any more, and is told as HR_CANCELLED, unless every byte was in place already.
hr_status_t hr_xfer_cancel(hr_xfer_t *xfer, hr_error_t **error);

// The path it takes. HR_PATH_OTHER for NULL.
hr_path_t hr_xfer_path(const hr_xfer_t *xfer);

// Frees a transfer. One that goes on is cancelled, and the call blocks until nothing touches its memory any more: at
// once, unless a slice is just being moved; over sockets for a round trip, and up to peer_timeout_ns for a peer that
// froze. Its callback has been called and has returned then; see hr_xfer_on_done(). NULL is fine.
void hr_xfer_free(hr_xfer_t *xfer);

// Has `callback` called with `data` when the transfer ends, exactly once; at once where it has ended already. A
// transfer takes one callback. NULL is none.
//
// It is called by the thread that brings the end: one of the agent's, or one that is in a function of this library,
// such as this one, hr_xfer_wait(), hr_xfer_cancel() or hr_xfer_free(). It holds no lock, so it may call any function
// but hr_agent_destroy(), and may free this transfer, if nobody else uses or frees it. What takes long in it delays
// other transfers. It must return: an exception or a longjmp(3) out of it ends the process, or worse.
//
// When hr_xfer_free() returns, the callback has been called and has returned, unless hr_xfer_free() was called by the
// callback. A transfer that had not ended is cancelled by that, so the callback is told HR_CANCELLED. So `data` may be
// freed in the callback, or behind hr_xfer_free(). It follows that two callbacks must not free each other's transfers:
// each would wait for the other. hr_xfer_wait() may return while the callback still runs.
// Costs one allocation. Errors: HR_INVALID_ARGUMENT for a second callback.
hr_status_t hr_xfer_on_done(hr_xfer_t *xfer, hr_xfer_callback_t callback, void *data, hr_error_t **error);

// A counter at zero. An agent has room for 65536. Free it with hr_counter_free().
// Errors: HR_TOO_LARGE.
hr_status_t hr_agent_counter(hr_agent_t *agent, hr_counter_t **counter, hr_error_t **error);

// Its name, for the peer that is to raise it; the application tells it. Any number is a name, so 0, which is returned
// for NULL, says nothing.
uint64_t hr_counter_id(const hr_counter_t *counter);

// How far it is. All data of the transfers that raised it is in place. Costs one lock of its own. 0 for NULL.
uint64_t hr_counter_get(const hr_counter_t *counter);

// Waits up to `timeout_ns` nanoseconds until it is at least at `at_least`, and writes how far it is then to `reached`,
// which may be NULL. HR_PENDING where that took longer. Several threads may wait. A peer that is lost raises it no more
// and does not end the wait; HR_EVENT_PEER_LOST tells.
// Errors: HR_AGENT_CLOSED.
hr_status_t hr_counter_wait(const hr_counter_t *counter,
                            uint64_t at_least,
                            uint64_t timeout_ns,
                            uint64_t *reached,
                            hr_error_t **error);

// Frees a counter. Transfers that would raise it pass it over from then on, and its name comes to mean nothing else.
// NULL is fine.
void hr_counter_free(hr_counter_t *counter);

// The next event; HR_PENDING, and NULL in `event`, where there is none. Several threads may ask; each event goes to one
// of them. Free it with hr_event_free().
hr_status_t hr_agent_poll_event(hr_agent_t *agent, hr_event_t **event, hr_error_t **error);

// The same, after waiting up to `timeout_ns` nanoseconds for one.
hr_status_t hr_agent_wait_event(hr_agent_t *agent, uint64_t timeout_ns, hr_event_t **event, hr_error_t **error);

// A descriptor for an epoll(7) or poll(2) loop: readable once an event has come, a transfer of this agent has ended, or
// one of its counters was raised. When it is, read(2) its 8 bytes (eventfd(2)), which clears it; then take events with
// hr_agent_poll_event() until there are none, hr_xfer_poll() the transfers and hr_counter_get() the counters; in that
// order nothing is missed. It starts out readable, and does not block. Every call gives the same one. It belongs to the
// agent: watch and read it, do not close it, and take it out of the loop before hr_agent_destroy().
// Costs, from the first call on, a system call for each event, transfer and raise.
// Errors: HR_OS where no descriptor is left; `fd` is -1 then.
hr_status_t hr_agent_event_fd(hr_agent_t *agent, int *fd, hr_error_t **error);

// Frees an event and what it points to. NULL is fine.
void hr_event_free(hr_event_t *event);

// A directory within this process, for tests and for agents that share one; each call makes another one. No function
// waits for it. Free it with hr_directory_free().
hr_status_t hr_directory_memory(hr_directory_t **directory, hr_error_t **error);

// The directory in a folder that its users share, on one host or by a network file system; the folder is made if it is
// not there. It holds one file for each agent, and what killed processes leave blocks nobody. Whoever may write to the
// folder may remove and replace entries. The clocks of hosts that share it must agree to well within `ttl_ns` of
// hr_agent_publish(). Functions that use it block for up to five seconds, or as the file system does.
// Free it with hr_directory_free().
// Errors: HR_DIRECTORY or HR_OS where the folder cannot be made.
hr_status_t hr_directory_folder(const char *path, hr_directory_t **directory, hr_error_t **error);

// Frees a directory. Registrations in it stay. NULL is fine.
void hr_directory_free(hr_directory_t *directory);

// Registers the agent under its name, with what hr_agent_metadata() says now, and takes the name from whoever has it.
// The entry is renewed until the registration is freed, and outlives the last renewal by `ttl_ns` nanoseconds, 100 ms
// to 24 hours. Blocks as the directory does. Free it with hr_registration_free(), best before hr_agent_destroy(): it
// does not end with the agent, and those who follow the entry would find nobody.
// Errors: HR_INVALID_CONFIG for a ttl_ns out of range; HR_INVALID_ARGUMENT for a name that the directory cannot hold;
// HR_SUPERSEDED where another agent took the name meanwhile; HR_DIRECTORY, HR_OS.
hr_status_t hr_agent_publish(const hr_agent_t *agent,
                             hr_directory_t *directory,
                             uint64_t ttl_ns,
                             hr_registration_t **registration,
                             hr_error_t **error);

// Looks `name` up and connects to the agent, or gives the peer where it is connected already. Blocks as the directory
// does, then as hr_agent_connect(). It tries once. Free the peer with hr_peer_free().
// Errors: HR_NOT_FOUND where nobody of that name is registered; HR_DIRECTORY, HR_OS; as hr_agent_add_peer(), so
// HR_UNREACHABLE where the entry is of an agent that is gone.
hr_status_t hr_agent_connect_by_name(hr_agent_t *agent,
                                     const hr_directory_t *directory,
                                     const char *name,
                                     hr_peer_t **peer,
                                     hr_error_t **error);

// Whether the entry stands, as of the last renewal. Costs a lock, and waits for nothing.
// Errors: HR_SUPERSEDED, which lasts: another agent, or another life of this one, has taken the name, and this
// registration touches its entry no more. HR_DIRECTORY, HR_OS: tried again at the next renewal.
hr_status_t hr_registration_check(const hr_registration_t *registration, hr_error_t **error);

// Publishes what the agent says of itself now. Peers that are connected learn of new regions by themselves; this is for
// those who come later and want to see them in the directory. Blocks as the directory does.
// Errors: HR_WRONG_AGENT for another agent than the registered one; HR_SUPERSEDED, HR_DIRECTORY, HR_OS.
hr_status_t hr_registration_update(hr_registration_t *registration, const hr_agent_t *agent, hr_error_t **error);

// Removes the entry, if the name still belongs to it, and frees the registration. Blocks as the directory does; where
// that fails, the entry ends with its time to live. NULL is fine.
void hr_registration_free(hr_registration_t *registration);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HEADRACE_H */
