"""The router in front of two real vLLM engines that hand KV blocks over with the real NIXL. Run by ci/vllm-pd.

Each prompt is answered twice: through the router (prefill on one engine, decode on the other), and undivided by the
first engine alone, under a cache salt of its own so that neither answer can lean on the other's cached blocks. A case
passes when token ids, text, finish reason and prompt ids are equal AND vLLM's own metrics say that the decode engine
got every block it lacked from NIXL and computed no prompt token itself. A control shows that the comparison can fail:
with the blocks of another prompt the tokens differ. Then come errors, a client that leaves in mid-stream, and both
engines killed.

Only Python's standard library is used here; vLLM lives in the environment that --vllm points to.
"""

import argparse
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

BLOCK_TOKENS = 32  # vLLM's attention on CPU takes multiples of 32 only
CONTEXT_TOKENS = 2048
START_LIMIT_S = 400
ANSWER_LIMIT_S = 180
SETTLE_LIMIT_S = 60
CLEAR_ERROR_LIMIT_S = 30
AT_ONCE = 8
MODEL = "tiny"
GIVE = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
    "remote_block_ids": None, "remote_host": None, "remote_port": None,
}
STORY = (
    "The mill stands by the river and its wheel turns all day. The miller opens the gate when there is grain to "
    "grind, and closes it when the water runs low. One winter the river froze, so he asked the farmers to wait. "
)


class CheckFailed(Exception):
    """The check cannot go on, and why."""


class Process:
    """A child in a process group of its own, with its output in a file."""

    def __init__(self, name, command, log, env=None):
        self.name, self.log, self.gone = name, log, False
        with open(log, "wb") as out:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})}, start_new_session=True,
            )

    def signal(self, number):
        """To the whole group: a vLLM is several processes."""
        try:
            if not self.gone:
                os.killpg(self.child.pid, number)
        except ProcessLookupError:
            pass

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()
        self.gone = True

    def stop(self):
        """After a SIGTERM: gives it time to end, then takes what is left of the group."""
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def said(self):
        return Path(self.log).read_text(errors="replace")

    def wait_until(self, ready, limit_s):
        deadline = time.monotonic() + limit_s
        while not ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                why = "ended" if self.child.poll() is not None else f"was not ready within {limit_s} s"
                last = "\n".join(self.said().splitlines()[-25:])
                raise CheckFailed(f"{self.name} {why}; the end of {self.log}:\n{last}")
            time.sleep(0.5)


class Samples:
    """The metrics of one moment."""

    def __init__(self, text):
        self.lines = [line for line in text.splitlines() if line and not line.startswith("#")]

    def sum(self, name, label=""):
        """Over all series of that name whose labels contain `label`."""
        series = (line.rsplit(" ", 1) for line in self.lines if line.startswith((name + "{", name + " ")))
        return sum(float(value) for labels, value in series if label in labels)


class Server:
    """An HTTP server on loopback."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def open(self, path, body=None, limit_s=ANSWER_LIMIT_S):
        """Connection and head of the answer. `body` becomes JSON, unless it is bytes already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        if body is None:
            connection.request("GET", path)
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, data, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def call(self, path, body=None, limit_s=ANSWER_LIMIT_S):
        """Status and text of an answer."""
        connection, answer = self.open(path, body, limit_s)
        try:
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def good(self, path, body=None):
        """The text of an answer that has to be 200."""
        status, text = self.call(path, body)
        if status != 200:
            raise CheckFailed(f"{self.url}{path} answered {status}: {text[:600]}")
        return text

    def is_up(self):
        try:
            return self.call("/health", limit_s=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def samples(self):
        return Samples(self.good("/metrics"))


class Stream:
    """An answer as server-sent events."""

    def __init__(self, server, path, body):
        self.connection, self.answer = server.open(path, body)

    def events(self):
        """The data of each event, the last one `[DONE]` if all is well."""
        for line in self.answer:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()

    def leave(self):
        """Goes as a client does that has lost interest."""
        self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()


@dataclasses.dataclass
class Answer:
    """What has to be the same in both answers, however they came."""

    prompt: list = dataclasses.field(default_factory=list)
    tokens: list = dataclasses.field(default_factory=list)
    text: str = ""
    finish: str = None

    def add(self, reply):
        """A whole answer, or one event of it."""
        if "error" in reply:
            raise CheckFailed(f"an error instead of an answer: {reply}")
        # vLLM puts them here for a chat and into the choices for a completion; in a stream, once.
        self.prompt += reply.get("prompt_token_ids") or []
        for choice in reply["choices"]:
            content = choice.get("message") or choice.get("delta") or {}
            self.text += choice.get("text") or content.get("content") or ""
            self.tokens += choice.get("token_ids") or []
            self.prompt += choice.get("prompt_token_ids") or []
            self.finish = choice["finish_reason"] or self.finish


@dataclasses.dataclass
class Case:
    """A prompt and how it is asked for."""

    name: str
    body: dict

    @property
    def path(self):
        return "/v1/chat/completions" if "messages" in self.body else "/v1/completions"

    def ask(self, server, **more):
        body = {"model": MODEL, "max_tokens": 40, "temperature": 0, "return_token_ids": True, **self.body, **more}
        answer = Answer()
        if not body.get("stream"):
            answer.add(json.loads(server.good(self.path, body)))
            return answer
        events = list(Stream(server, self.path, body).events())
        if not events or events[-1] != "[DONE]":
            raise CheckFailed(f"{self.name}: the stream did not end with [DONE]: {events[-1:]}")
        for event in events[:-1]:
            answer.add(json.loads(event))
        return answer


def free_ports(count):
    """Ports that are free now; all are held until the last is found, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def settle(ready, limit_s=SETTLE_LIMIT_S):
    """Waits for `ready`; metrics follow the answers with a delay. Whether it came true."""
    deadline = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def at_once(jobs):
    """Runs all jobs in threads of their own; their results in order, or the first exception."""
    results = [None] * len(jobs)

    def run(index):
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class Check:
    """All processes, and what has been found so far."""

    def __init__(self, args):
        self.args = args
        self.work = Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = self.work / "model"
        self.started = []
        self.failures = 0
        self.passed = 0
        self.salts = 0

    # Starting and stopping

    def spawn(self, name, command, env=None):
        process = Process(name, [str(word) for word in command], self.work / f"{name}.log", env)
        self.started.append(process)
        return process

    def start_engine(self, name):
        port, side_port = free_ports(2)
        server = Server(port)
        connector = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
        command = [
            self.args.vllm, "serve", self.model, "--served-model-name", MODEL, "--host", "127.0.0.1",
            "--port", port, "--max-model-len", CONTEXT_TOKENS, "--dtype", "bfloat16", "--block-size", BLOCK_TOKENS,
            "--enforce-eager", "--kv-transfer-config", json.dumps(connector),
        ]
        env = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port),
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        }
        begin = time.monotonic()
        process = self.spawn(name, command, env)
        process.wait_until(server.is_up, START_LIMIT_S)
        print(f"vLLM for {name} is up at {server.url} after {time.monotonic() - begin:.0f} s", flush=True)
        return process, server

    def start(self):
        subprocess.run([self.args.engine, "make-model", self.model], check=True)
        config = json.loads((self.model / "config.json").read_text())
        heads = config["num_key_value_heads"] * config["head_dim"]
        keys_and_values, bytes_per_element = 2, 2
        self.block_bytes = (
            keys_and_values * config["num_hidden_layers"] * heads * bytes_per_element * BLOCK_TOKENS
        )
        # One after the other: a start takes more memory and time than all that follows.
        self.prefill_process, self.prefill = self.start_engine("prefill")
        self.decode_process, self.decode = self.start_engine("decode")
        command = [
            self.args.router, "serve", "--port", "0", "--prefill", self.prefill.url, "--decode", self.decode.url,
        ]
        router = self.spawn("router", command)
        ready = "router-lite listening on http://127.0.0.1:"
        router.wait_until(lambda: ready in router.said(), 30)
        self.router = Server(int(router.said().split(ready)[1].split()[0]))
        router.wait_until(self.router.is_up, 60)
        print(f"router-lite is up at {self.router.url}", flush=True)

    def stop(self):
        for process in self.started:
            process.signal(signal.SIGTERM)
        for process in reversed(self.started):
            process.stop()

    # Reporting

    def verdict(self, good, line):
        self.passed += good
        self.failures += not good
        print(line if good else f"{line}   FAILED", flush=True)

    def row(self, *cells):
        widths = (30, 8, 8, 12, 12, 10)
        return "".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths)).rstrip()

    # Same tokens

    def salt(self):
        self.salts += 1
        return f"undivided-{self.salts}"

    def alone(self, case):
        """The undivided answer: one engine does it all, from nothing. Parameters that make no sense would crash it."""
        return case.ask(self.prefill, cache_salt=self.salt(), kv_transfer_params=None)

    def warm_up(self):
        """The engines' first handshake may take longer than vLLM waits for it; it is not what is tested here."""
        Case("warm-up", {"prompt": "The first words", "max_tokens": 4}).ask(self.router)
        Case("warm-up", {"prompt": "The first words", "max_tokens": 4}).ask(self.prefill)

    def compare(self, name, cases, split=True):
        """Asks for all `cases` at once, divided; then for one after the other, undivided.

        Without `split` they are of a kind that the hand-off cannot carry, so the decode engine has to do all of it.
        """
        source = "vllm:prompt_tokens_by_source_total"
        names = {
            "taken": (source, 'source="external_kv_transfer"'), "cached": (source, 'source="local_cache_hit"'),
            "computed": (source, 'source="local_compute"'), "bytes": ("vllm:nixl_bytes_transferred_sum", ""),
        }
        before = self.decode.samples()
        divided = at_once([lambda case=case: case.ask(self.router) for case in cases])
        prompt_tokens = sum(len(answer.prompt) for answer in divided)
        moved = {}

        def all_counted():
            now = self.decode.samples()
            moved.update({key: now.sum(*which) - before.sum(*which) for key, which in names.items()})
            return moved["bytes"] > 0 and moved["taken"] + moved["cached"] + moved["computed"] >= prompt_tokens

        settle(all_counted, 15 if split else 2)
        undivided = [self.alone(case) for case in cases]
        identical = divided == undivided
        blocks = sum(-(-len(answer.prompt) // BLOCK_TOKENS) for answer in divided)
        # A prompt of one token is always computed, even though its block has come: some token has to be.
        expected = {
            "bytes": (blocks - moved["cached"] // BLOCK_TOKENS) * self.block_bytes if split else 0,
            "computed": sum(len(answer.prompt) == 1 for answer in divided) if split else moved["computed"],
        }
        carried = all(moved[key] == count for key, count in expected.items()) and (moved["bytes"] > 0) == split
        self.verdict(identical and carried, self.row(
            name, prompt_tokens, sum(len(answer.tokens) for answer in divided), int(moved["bytes"]),
            int(moved["cached"]), "yes" if identical else "NO",
        ))
        if not carried:
            print(f"    expected {expected}, but the decode engine counted {moved}")
        if not identical:
            for left, right in zip(divided, undivided):
                if left != right:
                    print(f"    divided:   {left}\n    undivided: {right}")

    def compare_all(self):
        tokens = json.loads(self.prefill.good("/tokenize", {"model": MODEL, "prompt": STORY * 60}))["tokens"]
        user = {"role": "user", "content": "Tell me about the mill and the river."}
        answered = {"role": "assistant", "content": "It grinds."}
        turns = [user, answered, {"role": "user", "content": "What does it grind?"}]
        usage = {"include_usage": True}
        seeded = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
        print("\n" + self.row("prompt", "tokens", "answer", "NIXL bytes", "hit at D", "identical"))
        for count in (1, 31, 32, 33, 1500):
            self.compare(f"{count} tokens", [Case("", {"prompt": tokens[count : 2 * count]})])
        self.compare("text", [Case("", {"prompt": STORY})])
        self.compare("chat", [Case("", {"messages": [user]})])
        self.compare("chat with turns", [Case("", {"messages": turns})])
        self.compare("streamed", [Case("", {"prompt": "Streamed: " + STORY, "stream": True})])
        self.compare("chat, streamed", [
            Case("", {"messages": [{"role": "user", "content": STORY}], "stream": True, "stream_options": usage}),
        ])
        for turn in ("first", "second"):
            self.compare(f"shared prefix, {turn}", [Case("", {"prompt": f"{'Shared. ' + STORY * 2} The {turn} day"})])
        self.compare("the same prompt again", [Case("", {"prompt": STORY})])
        self.compare("seeded sampling", [Case("", {"prompt": "Seeded. " + STORY, **seeded})])
        self.compare("seeded sampling, streamed", [Case("", {"prompt": "Drawn. " + STORY, **seeded, "stream": True})])
        self.compare("a stop string", [Case("", {"prompt": "Stop. " + STORY, "stop": ["the "]})])
        lengths = [1 + 30 * index for index in range(AT_ONCE)]
        self.compare(f"{AT_ONCE} at once", [
            Case("", {"prompt": tokens[length * 2 + 300 :][:length], **({"stream": True} if length % 2 else {})})
            for length in lengths
        ])

        own = {"do_remote_decode": True, "do_remote_prefill": True, "remote_engine_id": "not-an-engine"}
        self.compare("a client's own parameters", [Case("", {"prompt": "Own. " + STORY, "kv_transfer_params": own})])
        self.compare("with logprobs", [Case("", {"prompt": "Logs. " + STORY, "logprobs": 1})])
        self.compare("two samples, kept whole", [Case("", {"prompt": "Two. " + STORY, "n": 2, **seeded})], split=False)
        self.compare("two prompts, kept whole", [Case("", {"prompt": ["One", "Two"]})], split=False)

    def control(self):
        """Decode with the blocks of another prompt of the same length has to go wrong, or the comparison is blind."""
        tokens = json.loads(self.prefill.good("/tokenize", {"model": MODEL, "prompt": STORY * 4}))["tokens"]
        mine, other = Case("control", {"prompt": tokens[5:101]}), tokens[60:156]
        given = {"model": MODEL, "prompt": other, "max_tokens": 1, "kv_transfer_params": GIVE}
        params = json.loads(self.prefill.good("/v1/completions", given))["kv_transfer_params"]
        wrong = mine.ask(self.decode, cache_salt=self.salt(), kv_transfer_params=params)
        differs = wrong.tokens != self.alone(mine).tokens
        outcome = "differ" if differs else "are THE SAME"
        self.verdict(differs, f"control: with the blocks of another prompt the tokens {outcome}")

    # Errors

    def refuse(self, name, path, body, status, words):
        begin = time.monotonic()
        got, text = self.router.call(path, body, CLEAR_ERROR_LIMIT_S)
        try:
            message = " ".join(json.loads(text)["error"]["message"].split())
        except (ValueError, KeyError, TypeError):
            message = f"no error object: {text[:200]}"
        good = got in status and words in message
        self.verdict(good, f"{name}: {got} after {time.monotonic() - begin:.1f} s: {message[:200]}")

    def errors(self):
        completions = "/v1/completions"
        base = {"model": MODEL, "max_tokens": 4}
        print()
        self.refuse("malformed JSON", completions, b'{"model": "tiny", "prompt": ', {400}, "not valid JSON")
        self.refuse("unknown model", completions, {**base, "model": "other", "prompt": "a"}, {404}, "does not exist")
        self.refuse("empty prompt", completions, {**base, "prompt": ""}, {400}, "non-empty")
        self.refuse("over-long prompt", completions, {**base, "prompt": [9] * 3000}, {400}, "maximum context length")
        self.refuse("over-long answer", completions, {**base, "prompt": "a", "max_tokens": 5000}, {400}, "max_tokens")
        self.refuse("wrong type", completions, {**base, "prompt": "a", "temperature": "hot"}, {400}, "temperature")

    def long_stream(self, prompt, max_tokens):
        """A stream that has begun."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        stream = Stream(self.router, "/v1/completions", body)
        events = stream.events()
        first = next(events, "")
        if '"choices"' not in first:
            raise CheckFailed(f"a long stream did not begin: {stream.answer.status} {first}")
        return stream, events

    def step(self):
        """The engines' gauges move with a step, so each makes one."""
        for engine in (self.prefill, self.decode):
            Case("step", {"prompt": "a", "max_tokens": 1}).ask(engine)

    def client_leaves(self):
        asked = 1800
        generated = "vllm:generation_tokens_total"
        before = self.decode.samples().sum(generated)
        stream, events = self.long_stream("Leaving. " + STORY, asked)
        seen = 1 + sum(1 for _ in zip(range(4), events))
        stream.leave()
        busy = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")

        def all_idle():
            self.step()
            return all(engine.samples().sum(name) == 0 for engine in (self.prefill, self.decode) for name in busy)

        idle = settle(all_idle)
        made = self.decode.samples().sum(generated) - before
        held = "free" if idle else "HELD"
        line = f"client leaves after {seen} of {asked} tokens: decode stopped at {made:.0f}, blocks are {held} at both"
        self.verdict(idle and made < asked, line)

    def engines_killed(self):
        _, short = self.long_stream("Short. " + STORY, 300)
        _, long = self.long_stream("Long. " + STORY, 1900)
        self.prefill_process.kill()
        body = {"model": MODEL, "prompt": "Nobody computes this.", "max_tokens": 4}
        self.refuse("prefill killed, a new request", "/v1/completions", body, {502, 503}, self.prefill.url)
        last = list(short)[-1:]
        self.verdict(last == ["[DONE]"], f"prefill killed, a stream that decodes already: ends with {last[0][:80]}")
        self.decode_process.kill()
        begin = time.monotonic()
        rest = list(long)
        took = time.monotonic() - begin
        last = rest[-1] if rest else "nothing"
        clear = "[DONE]" not in rest and '"error"' in last and took < CLEAR_ERROR_LIMIT_S
        self.verdict(clear, f"decode killed in mid-stream: ends after {took:.1f} s with {last[:200]}")
        self.refuse("both killed, a new request", "/v1/completions", body, {502, 503}, self.prefill.url)

    def run(self):
        self.start()
        self.warm_up()
        self.compare_all()
        self.control()
        decode, router = self.decode.samples(), self.router.samples()
        print(f"\nby NIXL in all: {decode.sum('vllm:nixl_bytes_transferred_sum'):.0f} bytes in "
              f"{decode.sum('vllm:nixl_bytes_transferred_count'):.0f} transfers, "
              f"{decode.sum('vllm:nixl_num_failed_transfers_total'):.0f} failed; "
              f"the router sent {router.sum('router_retries_total'):.0f} requests again")
        self.errors()
        self.client_leaves()
        self.engines_killed()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", required=True, help="the vllm command")
    parser.add_argument("--router", required=True, help="the router-lite command")
    parser.add_argument("--engine", required=True, help="the engine-lite command, for its make-model")
    parser.add_argument("--work", required=True, help="folder for the model and the logs")
    return parser.parse_args()


def main():
    check = Check(parse())
    # A signal ends this like an exception, so that the children are stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    begin = time.monotonic()
    try:
        check.run()
    except (CheckFailed, OSError, http.client.HTTPException, subprocess.CalledProcessError) as error:
        check.failures += 1
        print(f"stopped: {type(error).__name__}: {error}")
    finally:
        check.stop()
    print(f"\n{check.passed} passed, {check.failures} failed in {time.monotonic() - begin:.0f} s; logs in {check.work}")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
