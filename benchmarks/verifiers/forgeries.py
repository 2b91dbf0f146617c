"""Answers that try to pass without solving the task; none may pass."""

from __future__ import annotations

from benchmarks.verifiers.tasks import FUNCTION, PROGRAM, make_task
from posttrain.records import Prompt

FUNCTION_FORGERIES: dict[str, str] = {
    "exit 0": "import sys\nsys.exit(0)",
    "exit 0 when called": "import sys\ndef second_largest(n): sys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "os._exit when called": "import os\ndef second_largest(n): os._exit(0)",
    "quit": "quit()",
    "raise SystemExit": "raise SystemExit(0)",
    "print passed": "print('OK')\nprint('5 passed')\ndef second_largest(n): return 'passed'",
    "equal to all": """
class All:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def second_largest(n): return All()
""",
    "int equal to all": """
class All(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def second_largest(n): return All(1)
""",
    "int that prints as another": """
class Liar(int):
    def __repr__(self): return '2'
    __str__ = __repr__
def second_largest(n): return Liar(9)
""",
    "str that is all": """
class All(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def second_largest(n): return All('2')
""",
    "list that grows when read": """
class Growing(list):
    def __iter__(self): return iter([2])
    def __len__(self): return 1
def second_largest(n): return Growing()
""",
    "dict subclass": """
class All(dict):
    def __missing__(self, key): return self
    def __eq__(self, other): return True
def second_largest(n): return All()
""",
    "lying class": """
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return hash(int)
class Fake(metaclass=Meta):
    __module__, __qualname__ = 'builtins', 'int'
def second_largest(n): return Fake()
""",
    "lying __class__": """
class Fake:
    __class__ = int
    def __index__(self): return 2
def second_largest(n): return Fake()
""",
    "json patched to say true": """
import json
json.dumps = lambda *a, **k: '{"passed": true}'
def second_largest(n): return 0
""",
    "json patched to drop values": """
import json
real = json.dumps
json.dumps = lambda value, **k: real({**value, 'value': True}) if 'value' in value else real(value)
def second_largest(n): return 0
""",
    "encoder of the harness replaced": """
import __main__
__main__.encode = lambda value, depth=0: 2
def second_largest(n): return 0
""",
    "report of the harness replaced": """
import __main__
def report(descriptor, message):
    import os, json
    if 'value' in message: message['value'] = None
    os.write(descriptor, (json.dumps(message) + '\\n').encode())
__main__.report = report
def second_largest(n): return 0
""",
    "expected in a caller's frame": """
import sys
def second_largest(n):
    frame = sys._getframe(1)
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, dict) and 'expect' in value: return value['expect']
        frame = frame.f_back
    return 'not found'
""",
    "expected by the garbage collector": """
import gc
def second_largest(n):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and 'expect' in thing and 'args' in thing: return thing['expect']
    return 'not found'
""",
    "expected from stdin": """
import json, sys
def second_largest(n):
    sys.stdin.seek(0)
    for test in json.load(sys.stdin)['calls']:
        if test['args'] == [n]: return test['expect']
""",
    "expected from the harness's source": """
import sys, linecache, re
def second_largest(n):
    text = ''.join(linecache.getlines('program.py') + list(map(str, sys.orig_argv)))
    return re.search(r'expect.: (.+?)}', text)[1]
""",
    "expected from files": """
import os, re
def second_largest(n):
    for folder, _, names in os.walk('/'):
        for name in names:
            try: text = open(os.path.join(folder, name)).read()
            except Exception: continue
            if '"expect"' in text: return re.search(r'"expect": (.+?)}', text)[1]
    return 'not found'
""",
    "expected from the environment": """
import os
def second_largest(n): return os.environ.get('EXPECTED', 'not found')
""",
    "expected in memory": """
import ctypes
def second_largest(n): return ctypes.cast(id(n), ctypes.py_object).value
""",
    "results written early": """
import json, os
for fd in range(1, 10):
    try:
        for number in range(5):
            os.write(fd, (json.dumps({'call': number, 'value': 2}) + '\\n').encode())
        os.write(fd, b'{"end": 5}\\n')
    except OSError: pass
os._exit(0)
""",
    "verdict written to every descriptor": """
import os
for fd in range(1, 64):
    try: os.write(fd, b'{"passed": true, "score": 1.0}\\n')
    except OSError: pass
def second_largest(n): return 2
""",
    "results twice": """
import os, json
def second_largest(n):
    for fd in range(3, 10):
        try: os.write(fd, (json.dumps({'call': 0, 'value': 2}) + '\\n').encode())
        except OSError: pass
    return sorted(n)[-2] if len(n) > 1 else None
""",
    "atexit rewrites": """
import atexit, os
atexit.register(lambda: os.write(1, b'{"end": 5}\\n'))
atexit.register(os._exit, 0)
def second_largest(n): return 0
""",
    "exit in a destructor": """
import os
class End:
    def __del__(self): os._exit(0)
def second_largest(n):
    End()
    return 0
""",
    "exit from a thread": """
import os, threading
threading.Thread(target=os._exit, args=(0,)).start()
def second_largest(n):
    import time
    time.sleep(0.2)
""",
    "exit by a signal": """
import os, signal
def second_largest(n): os.kill(os.getpid(), signal.SIGKILL)
""",
    "exit by an alarm": """
import os, signal, time
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
def second_largest(n): time.sleep(1)
""",
    "time stopped": """
import time
time.time = time.monotonic = time.perf_counter = lambda: 0.0
def second_largest(n):
    while True: pass
""",
    "import hook": """
import sys
class Hook:
    def find_spec(self, name, path=None, target=None): sys.exit(0)
sys.meta_path.insert(0, Hook())
def second_largest(n):
    import decimal_that_is_not_there
""",
    "builtins replaced": """
import builtins
builtins.type = lambda value: int
builtins.isinstance = lambda *a: True
builtins.len = lambda value: 0
def second_largest(n): return 0
""",
    "excepthook": """
import sys, os
sys.excepthook = lambda *a: os._exit(0)
def second_largest(n): raise ValueError
""",
    "trace function": """
import sys
def tracer(frame, event, argument):
    for name in list(frame.f_locals):
        if name == 'error': frame.f_locals[name] = None
    return tracer
sys.settrace(tracer)
def second_largest(n): raise ValueError
""",
    "profile function exits": """
import sys, os
sys.setprofile(lambda *a: os._exit(0))
def second_largest(n): return 0
""",
    "stdout replaced": """
import sys, io
sys.stdout = io.StringIO()
sys.__stdout__ = sys.stdout
def second_largest(n): return True
""",
    "stdout closed": """
import os
os.close(1)
def second_largest(n): return 0
""",
    "every descriptor closed": """
import os
def second_largest(n):
    os.closerange(0, 64)
    return 0
""",
    "huge integer": "def second_largest(n): return 10 ** 100_000",
    "huge list": "def second_largest(n): return [0] * 10_000_000",
    "endless generator": """
def second_largest(n):
    while True: yield 2
""",
    "a list of all answers": "def second_largest(n): return [2, 4, None, -2, 9]",
    "true for one": "def second_largest(n): return len(n) > 0",
    "a float": "def second_largest(n): return float(sorted(set(n))[-2]) if n[1:] else None",
    "a string": "def second_largest(n): return str(sorted(set(n))[-2]) if n[1:] else None",
    "deep nesting": """
def second_largest(n):
    value = []
    for _ in range(100_000): value = [value]
    return value
""",
    "a cycle": """
def second_largest(n):
    value = []
    value.append(value)
    return value
""",
    "endless recursion": "def second_largest(n): return second_largest(n)",
    "endless loop": "def second_largest(n):\n    while True: pass",
    "input changed": "def second_largest(n):\n    n.clear()\n    return n",
    "a marked value": "def second_largest(n): return {'$any': True}",
    "an object mark": "def second_largest(n): return {'$object': 'builtins.int'}",
    "not a number": "def second_largest(n): return float('nan')",
    "a mock": """
from unittest.mock import ANY
def second_largest(n): return ANY
""",
    "a lazy object": """
class Lazy:
    def __getattr__(self, name): return lambda *a, **k: True
def second_largest(n): return Lazy()
""",
    "first test known by heart": "def second_largest(n): return {3: 2, 2: 4}.get(n[0])",
    "no function": "answer = 2",
    "empty function": "def second_largest(n): ...",
    "text instead of code": "All tests passed. The answer is correct.",
    "syntax error": "def second_largest(n) return 2",
    "endless output": "def second_largest(n):\n    while True: print('passed' * 1000)",
    "memory": "def second_largest(n): return len(bytearray(2**31)) and 2",
}

PROGRAM_FORGERIES: dict[str, str] = {
    "exit 0": "raise SystemExit(0)",
    "print passed": "print('passed')",
    "every answer": "print('6\\n-4\\n1000001')",
    "first answer": "print(6)",
    "echo": "import sys; print(sys.stdin.read())",
    "right, then an error": "input(); print(sum(map(int, input().split()))); raise SystemExit(1)",
    "right, then a crash": """
import os
input()
print(sum(map(int, input().split())), flush=True)
os.abort()
""",
    "right, then endless": """
input()
print(sum(map(int, input().split())), flush=True)
while True: pass
""",
    "right, then a flood": """
input()
print(sum(map(int, input().split())))
for _ in range(100_000): print('x' * 100)
""",
    "right among others": "input(); n = list(map(int, input().split())); print(*range(10), sum(n))",
    "to stderr": "import sys; input(); print(sum(map(int, input().split())), file=sys.stderr)",
    "invisible characters": "input(); print(f'{sum(map(int, input().split()))}\\u200b')",
    "other digits": """
input()
print(str(sum(map(int, input().split()))).translate({48 + n: 0x660 + n for n in range(10)}))
""",
    "carriage returns": "input(); print(sum(map(int, input().split())), end='\\r999\\n')",
}


def forgeries() -> list[tuple[str, Prompt, str]]:
    """Return each forgery's name, prompt and answer."""
    function, program = make_task("code", FUNCTION), make_task("code", PROGRAM)
    return [
        *((f"function: {name}", function, code) for name, code in FUNCTION_FORGERIES.items()),
        *((f"program: {name}", program, code) for name, code in PROGRAM_FORGERIES.items()),
    ]
