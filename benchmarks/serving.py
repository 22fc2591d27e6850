"""A bundle's server compared with the limit of onnxruntime: how much of the rate of a bare loop over decoded images
remains when they arrive as JPEGs over HTTP, from many clients, one image per request. Prints ratios.

    python benchmarks/serving.py BUNDLE --images FOLDER        the images in FOLDER; default: drawn, 640×480
    python benchmarks/serving.py BUNDLE --requests 200 --rounds 1 --flat 0      takes a minute

`bare` is `session.run` in a loop on images that are in memory as arrays of the network's size; of several batch
sizes the one with the highest median counts. `bare, reading` decodes the same JPEGs first, with one thread per
core, while the network runs. Server and clients share the machine, which the bare loop has for itself; the cost of
the clients is printed."""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CORES = os.cpu_count() or 1
MAX_IMAGES = 256  # different ones


def files_of(folder):
    found = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not found:
        sys.exit(f'There are no images in {folder}.')
    return found[:: max(1, len(found) // MAX_IMAGES)][:MAX_IMAGES]


# --- bare: another process ------------------------------------------------------------------------------------
def bare(parameters):
    import numpy as np
    import onnxruntime

    from fungi_fastai.deploy.predictor import Predictor

    predictor = Predictor.load(parameters['bundle'])
    files = [p.read_bytes() for p in files_of(parameters['images'])]
    squares = np.stack([predictor.read(f) for f in files])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(
        Path(parameters['bundle']) / 'model.onnx', options, providers=['CPUExecutionProvider']
    )

    def run(pixels):
        return session.run(['probabilities'], {'images': pixels})[0]

    def rate(batches, total):
        start, used, count = time.perf_counter(), time.process_time(), 0
        for batch in batches:
            run(batch)
            count += len(batch)
            if count >= total:
                return dict(rate=count / (time.perf_counter() - start), cpu=(time.process_time() - used) / count * 1000)

    def plain(size):
        while True:
            yield from (squares[i : i + size] for i in range(0, len(squares) - size + 1, size))

    def reading(size):
        with ThreadPoolExecutor(CORES) as pool:
            ahead, i = deque(), 0
            while True:
                while len(ahead) < 2 * size + CORES:
                    ahead.append(pool.submit(predictor.read, files[i % len(files)]))
                    i += 1
                yield np.stack([ahead.popleft().result() for _ in range(size)])

    sizes = [s for s in (1, 4, 16, 32) if s <= len(squares)]
    run(squares[: sizes[-1]])
    print(
        json.dumps(
            dict(
                bare={s: rate(plain(s), parameters['requests']) for s in sizes},
                reading=rate(reading(8), parameters['requests']),
            )
        )
    )
    sys.stdout.flush()
    os._exit(0)


# --- clients: another process --------------------------------------------------------------------------------------
class Client(asyncio.Protocol):
    "Sends requests one after the other; of an answer it parses only length and status"

    def __init__(self, state):
        self.state, self.received = state, b''

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        if self.state.left <= 0:
            return self.transport.close()
        self.state.left -= 1
        self.start = time.perf_counter()
        self.transport.writelines(self.state.requests[self.state.left % len(self.state.requests)])

    def data_received(self, data):
        self.received += data
        head, blank, body = self.received.partition(b'\r\n\r\n')
        if not blank or len(body) < int(re.search(rb'content-length: (\d+)', head)[1]):
            return
        self.received = b''
        self.state.seconds.append(time.perf_counter() - self.start)
        self.state.failed += not head.startswith(b'HTTP/1.1 200')
        self.send()

    def connection_lost(self, error):
        self.state.finished()


class State:
    def __init__(self, requests, total, clients):
        self.requests, self.left, self.seconds, self.failed, self.clients = requests, total, [], 0, clients
        self.done = asyncio.get_running_loop().create_future()

    def finished(self):
        self.clients -= 1
        if not self.clients:
            self.done.set_result(None)


def clients(parameters):
    def request(file):
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
            + file.read_bytes()
            + b'\r\n--x--\r\n'
        )
        head = 'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n'
        head += f'Content-Length: {len(body)}\r\n\r\n'
        return [head.encode(), body]

    async def work():
        requests = [request(p) for p in files_of(parameters['images'])]
        state = State(requests, parameters['requests'], parameters['clients'])
        start, used = time.perf_counter(), time.process_time()
        loop = asyncio.get_running_loop()
        for _ in range(parameters['clients']):
            await loop.create_connection(lambda: Client(state), '127.0.0.1', parameters['port'])
        await state.done
        wall = time.perf_counter() - start
        taken = sorted(state.seconds)
        at = lambda q: taken[min(len(taken) - 1, int(q * len(taken)))] * 1000
        return dict(
            rate=len(taken) / wall,
            p50=at(0.5),
            p99=at(0.99),
            failed=state.failed,
            cpu_of_clients=(time.process_time() - used) / wall,
        )

    import uvloop  # uvicorn[standard] has it

    print(json.dumps(uvloop.run(work())))


# --- the whole -----------------------------------------------------------------------------------------------------
def environment():
    return os.environ | {
        'PYTHONPATH': os.pathsep.join(filter(None, (os.environ.get('PYTHONPATH'), str(Path(__file__).parents[1]))))
    }


def child(what, parameters):
    done = subprocess.run(
        [sys.executable, __file__, what, json.dumps(parameters)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    if done.returncode:
        sys.exit(f'{what} failed.')
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds(pid):
    "Used by a process so far"
    user, system = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def memory(pid):
    return int(re.search(r'VmRSS:\s*(\d+)', Path(f'/proc/{pid}/status').read_text())[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bundle', type=Path)
    parser.add_argument('--images', type=Path, help='a folder (default: 256 drawn ones)')
    parser.add_argument('--clients', type=int, default=32)
    parser.add_argument('--requests', type=int, default=2000, help='a round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--flat', type=int, default=10_000, help='requests over which memory is watched; 0: none')
    parser.add_argument('--json', type=Path, help='where to write the numbers')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as drawn:
        if arguments.images is None:
            from images import make, photo

            arguments.images = make(photo, Path(drawn), MAX_IMAGES)
        found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


def measure(arguments):
    parameters = dict(
        bundle=str(arguments.bundle),
        images=str(arguments.images),
        clients=arguments.clients,
        requests=arguments.requests,
    )
    code = (
        'import sys; from fungi_fastai.deploy.server import serve; '
        'sys.exit(serve(sys.argv[1], port=0, page=False, drain=0))'
    )
    server = subprocess.Popen(
        [sys.executable, '-c', code, parameters['bundle']], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        parameters['port'] = int(re.search(r':(\d+)$', (greeting := server.stdout.readline()).strip())[1])
        print(greeting.strip())
        child('clients', parameters | dict(requests=max(64, arguments.requests // 10)))  # not measured
        rounds = []
        for i in range(arguments.rounds):
            alone = child('bare', parameters)
            used = cpu_seconds(server.pid)
            served = child('clients', parameters)
            used = (cpu_seconds(server.pid) - used) / arguments.requests * 1000
            if served['failed']:
                sys.exit(f'{served["failed"]} requests failed.')
            rounds.append(
                served
                | dict(
                    bare=alone['bare'],
                    reading=alone['reading']['rate'],
                    reading_cpu=alone['reading']['cpu'],
                    server_cpu=used,
                )
            )
            rates = ', '.join(f'{found["rate"]:.0f}' for found in alone['bare'].values())
            print(
                f'round {i + 1}: bare {rates}/s (batches of {", ".join(alone["bare"])}), '
                f'bare and reading {alone["reading"]["rate"]:.0f}/s, '
                f'server {served["rate"]:.0f}/s',
                flush=True,
            )
        size = max(rounds[0]['bare'], key=lambda s: statistics.median(r['bare'][s]['rate'] for r in rounds))
        for r in rounds:
            r |= dict(batch=int(size), bare=r['bare'][size]['rate'], bare_cpu=r['bare'][size]['cpu'])
            r |= dict(ratio=r['rate'] / r['bare'], ratio_reading=r['rate'] / r['reading'])
        middle = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
        sizes = [memory(server.pid)]
        for _ in range(10 if arguments.flat else 0):
            child('clients', parameters | dict(requests=arguments.flat // 10))
            sizes.append(memory(server.pid))
    finally:
        server.terminate()
        server.wait(60)
    print(f'\n| {arguments.clients} clients, medians of {arguments.rounds} rounds | |\n| --- | ---: |')
    ratios = [r['ratio'] for r in rounds]
    print(
        f'| server ÷ bare onnxruntime (batches of {size}) | '
        f'{middle["ratio"]:.2f} ({min(ratios):.2f}–{max(ratios):.2f}) |'
    )
    print(f'| server ÷ bare onnxruntime that reads the JPEGs too | {middle["ratio_reading"]:.2f} |')
    print(
        f'| images a second: server, bare, bare and reading | '
        f'{middle["rate"]:.0f}, {middle["bare"]:.0f}, {middle["reading"]:.0f} |'
    )
    print(
        f'| ms of a core per image: server, bare, bare and reading | '
        f'{middle["server_cpu"]:.1f}, {middle["bare_cpu"]:.1f}, {middle["reading_cpu"]:.1f} |'
    )
    print(f'| latency p50, p99 | {middle["p50"]:.0f} ms, {middle["p99"]:.0f} ms |')
    print(f'| cores that the clients used | {middle["cpu_of_clients"]:.2f} of {CORES} |')
    if arguments.flat:
        print(f'| memory after each tenth of {arguments.flat:,} requests | {", ".join(f"{s:.0f}" for s in sizes)} MB |')
    return dict(rounds=rounds, median=middle, memory_mb=sizes)


if __name__ == '__main__':
    if len(sys.argv) == 3 and sys.argv[1] in ('bare', 'clients'):
        dict(bare=bare, clients=clients)[sys.argv[1]](json.loads(sys.argv[2]))
    else:
        main()
