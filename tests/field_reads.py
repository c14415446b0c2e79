"""Which attributes of which classes some source code reads, found without running it.

Types are followed by name from annotations (parameters, variables, class attributes, return values), constructors,
`isinstance`, `self.x = x`, assignments and attributes. A container counts as its elements: `Sequence[Shard]` is taken
for a `Shard`.
"""

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Types = frozenset[str]
Read = tuple[str, str]  # class and attribute
NONE: Types = frozenset()
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_PASSING_ON = frozenset({"sorted", "list", "tuple", "enumerate", "zip", "reversed", "next", "iter"})
_GIVING_ITSELF = frozenset({"model_copy", "values", "items", "get"})
_ROUNDS = 4  # a type that an attribute gets in a constructor may need that of another class first


@dataclass
class Classes:
    """What is known of all classes and functions.

    Attributes:
        attributes: Types of a class's attributes and of its methods' results.
        bases: Names of a class's bases.
        functions: Types of functions' results.
        reads: Attributes read, by where: the class and method, or empty texts outside of classes.
    """

    attributes: dict[str, dict[str, Types]] = field(default_factory=dict)
    bases: dict[str, Types] = field(default_factory=dict)
    functions: dict[str, Types] = field(default_factory=dict)
    reads: dict[Read, set[Read]] = field(default_factory=dict)

    def attribute(self, owner: str, name: str) -> Types:
        """Types of an attribute, inherited ones too."""
        found = self.attributes.get(owner, {}).get(name, NONE)
        return found or frozenset(
            itertools.chain.from_iterable(self.attribute(base, name) for base in self.bases.get(owner, NONE))
        )

    def lineage(self, owner: str) -> Iterator[str]:
        """A class and all its bases."""
        yield owner
        for base in self.bases.get(owner, NONE):
            yield from self.lineage(base)


def reads_of(sources: Mapping[str, str], models: Mapping[str, str]) -> set[Read]:
    """The attributes of config models that modules read.

    Args:
        sources: Source text by module name.
        models: Module of every config model by the model's name. Reads in these modules count only where they are in a
            property or method that another module uses; so a validator's do not.
    """
    classes = Classes()
    trees = {name: ast.parse(text) for name, text in sources.items()}
    for tree in trees.values():
        _declare(tree, classes)
    for _ in range(_ROUNDS):
        outside: set[Read] = set()
        inside: dict[Read, set[Read]] = {}
        for name, tree in trees.items():
            classes.reads = inside if name in models.values() else {}
            _Reader(classes).visit(tree)
            if name not in models.values():
                outside |= set().union(*classes.reads.values())
    left = list(outside)
    while left:
        owner, name = left.pop()
        new = set()
        for base in classes.lineage(owner):
            # What an inherited property reads of itself is read of the class that inherits it.
            new |= {(owner if read == base else read, of) for read, of in inside.get((base, name), set())} - outside
        outside |= new
        left += new
    return {(owner, name) for owner, name in outside if owner in models}


def _declare(tree: ast.Module, classes: Classes) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            own = classes.attributes.setdefault(node.name, {})
            classes.bases[node.name] = frozenset(itertools.chain.from_iterable(map(_named, node.bases)))
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    own[part.target.id] = _named(part.annotation)
                elif isinstance(part, _FUNCTIONS):
                    result = _named(part.returns)
                    own[part.name] = frozenset({node.name}) if "Self" in result else result
        elif isinstance(node, ast.Module):
            for part in node.body:
                if isinstance(part, _FUNCTIONS):
                    classes.functions[part.name] = _named(part.returns)


def _named(annotation: ast.expr | None) -> Types:
    """All names in an annotation."""
    if annotation is None:
        return NONE
    found = set()
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return frozenset(found)


class _Reader(ast.NodeVisitor):
    """Goes through a module, keeps the types of its variables, and notes what is read of them."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._scopes: list[dict[str, Types]] = [{}]
        self._place: Read = ("", "")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = self._place
        for part in node.body:
            self._place = (node.name, getattr(part, "name", ""))
            self.visit(part)
        self._place = outer

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._function(node.args, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node.args, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node.args, [node.body])

    def _function(self, arguments: ast.arguments, body: Iterable[ast.AST]) -> None:
        self._scopes.append({})
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for one in given:
            self._scopes[-1][one.arg] = _named(one.annotation)
        if given and given[0].arg in ("self", "cls") and self._place[0]:
            self._scopes[-1][given[0].arg] = frozenset({self._place[0]})
        for part in body:
            self.visit(part)
        self._scopes.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            for owner in self._types(node.value):
                self._classes.reads.setdefault(self._place, set()).add((owner, node.attr))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._set(node.target, _named(node.annotation))

    def visit_For(self, node: ast.For) -> None:
        self._set(node.target, self._types(node.iter))
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._set(item.optional_vars, self._types(item.context_expr))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            self._set(node.args[0], self._types(node.args[0]) | _named(node.args[1]))
        self.generic_visit(node)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, _COMPREHENSIONS):
            for generator in node.generators:
                self._set(generator.target, self._types(generator.iter))
        super().visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, own in zip(target.elts, value.elts, strict=True):
                self._bind(one, own)
        else:
            self._set(target, self._types(value))

    def _set(self, target: ast.expr, types: Types) -> None:
        if isinstance(target, ast.Name):
            self._scopes[-1][target.id] = types
        elif isinstance(target, ast.Tuple):
            for one in target.elts:
                self._set(one, types)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            own = self._classes.attributes.setdefault(self._place[0], {})
            own[target.attr] = own.get(target.attr, NONE) | types

    def _types(self, node: ast.expr) -> Types:
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self._scopes) if node.id in scope), NONE)
        if isinstance(node, ast.Attribute):
            return self._union(self._classes.attribute(owner, node.attr) for owner in self._types(node.value))
        if isinstance(node, ast.Call):
            return self._result(node)
        parts = _alternatives(node)
        return self._union(map(self._types, parts))

    def _result(self, node: ast.Call) -> Types:
        """Types of a call's result: of a class itself, a function, a method, or a copy."""
        called, classes = node.func, self._classes
        if isinstance(called, ast.Name) and called.id in _PASSING_ON:
            return self._union(map(self._types, node.args))
        if isinstance(called, ast.Name):
            own = frozenset({called.id}) if called.id in classes.attributes else NONE
            return own or classes.functions.get(called.id, NONE)
        if not isinstance(called, ast.Attribute):
            return NONE
        found = self._types(called)
        if isinstance(called.value, ast.Name) and called.value.id in classes.attributes:
            found |= classes.attribute(called.value.id, called.attr) or frozenset({called.value.id})
        return found | self._types(called.value) if called.attr in _GIVING_ITSELF else found

    @staticmethod
    def _union(found: Iterable[Types]) -> Types:
        return frozenset(itertools.chain.from_iterable(found))


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions that another is one of, or made of."""
    if isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.NamedExpr | ast.Await | ast.Starred | ast.Subscript):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        yield from node.elts
    elif isinstance(node, ast.Dict):
        yield from node.values
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        yield node.elt
