"""Programs with one small change each, made in their syntax trees."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutants(code: str, function: str) -> Iterator[str]:
    """Yield each program that differs from `code` in one operator or constant of `function`."""
    tree = ast.parse(code)
    inside = {id(n) for top in tree.body if _is(top, function) for n in ast.walk(top)}
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node) if id(node) in inside else ():
            changed = copy.deepcopy(tree)
            # Walking is in the same order for equal trees.
            target = next(n for k, n in enumerate(ast.walk(changed)) if k == number)
            for name, value in change.items():
                setattr(target, name, value)
            yield ast.unparse(ast.fix_missing_locations(changed))


def _is(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _changes(node: ast.AST) -> Iterator[dict[str, object]]:
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            if type(op) in _OPERATORS:
                yield {"op": _OPERATORS[type(op)]()}
        case ast.Compare(ops=[op, *rest]) if type(op) in _OPERATORS:
            yield {"ops": [_OPERATORS[type(op)](), *rest]}
        case ast.Constant(value=bool() as value):
            yield {"value": not value}
        case ast.Constant(value=int() as value):
            yield {"value": value + 1}
        case ast.Constant(value=str() as value) if value and len(value) < 20:
            yield {"value": value + "x"}
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield {"operand": ast.UnaryOp(op=ast.Not(), operand=operand)}
        case _:
            return
