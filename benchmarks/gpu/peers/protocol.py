"""The peers' side of the JSON lines of ../peers.ts, and the data that both sides make. Needs nothing but Python."""
import json
import os
import sys
import traceback

WORD = 0xFFFFFFFF


class Absent(Exception):
    """This peer cannot do this work."""


def mix(index, seed):
    """32 bits that depend on all bits of the index, as in ../case.ts. Of ints, of int64 tensors, of uint32 arrays."""
    x = (index + (seed * 0x9E3779B1 & WORD)) & WORD
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)


def uniform_at(index, seed):
    """Element `index` of the input `seed`, in [-1, 1)."""
    return (mix(index, seed) >> 8) / 2**23 - 1


def sets_for(size, least):
    """Sets of inputs whose use by turns leaves the cache."""
    return max(2, -(-least // size))


def serve(peers, absent, open_work):
    """Answers requests until there are no more. `open_work(peer, work, footprint)` gives an object with `units`, `rows(indices)` (lists of
    numbers), `run(runs)` (milliseconds) and `close()`, or raises Absent."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened = {}

    def answer(request):
        do, number = request["do"], request.get("as")
        if do == "hello":
            return {"peers": peers, "absent": absent}
        if do == "open":
            if request["peer"] not in peers:
                return {"absent": absent.get(request["peer"], "unknown here")}
            try:
                opened[number] = open_work(request["peer"], request["work"], request["footprint"])
            except Absent as reason:
                return {"absent": str(reason)}
            return {"units": opened[number].units}
        if do == "rows":
            return {"values": [value for row in opened[number].rows(request["rows"]) for value in row]}
        if do == "run":
            return {"ms": opened[number].run(request["runs"])}
        if do == "close":
            if number in opened:
                opened.pop(number).close()
            return {}
        raise ValueError(f"no such request: {do}")

    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = answer(request)
        except Exception as error:  # whatever a peer does wrong, the benchmarks go on
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps({"id": request["id"], **result}), file=answers, flush=True)
