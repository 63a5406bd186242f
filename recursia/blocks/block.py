"""TEMPORARY adapter until blocks of parts arrive."""
import dataclasses
import importlib
import pkgutil

import recursia.blocks as package


class Block:
    pass


def patch():
    for m in pkgutil.iter_modules(package.__path__):
        if m.name == "block":
            continue
        mod = importlib.import_module(f"recursia.blocks.{m.name}")
        C = mod.Config
        if "slots" in C.__dict__:
            continue
        C.slots, C.exact, C.key_weights = mod.SLOTS, mod.FLOAT32, mod.SOURCE
        C.specs = lambda self, n, mod=mod: mod.specs(self, n)
        C.final_norm = lambda self, mod=mod: mod.final_norm(self)
        C.apply = lambda self, p, x, c, source=None, memory=None, mod=mod: mod.apply(p, x, c, self, source, memory)
        C.losses = lambda self, r, mod=mod: mod.losses(self, r)
        C.batch_losses = lambda self, mod=mod: mod.batch_losses(self) if hasattr(mod, "batch_losses") else ()
        C.forward_flops = lambda self, k, r, mod=mod: mod.forward_flops(self, k, r)
        C.recomputed_flops = lambda self, k, mod=mod: mod.recomputed_flops(self, k)
        C.with_wide_keys = lambda self: dataclasses.replace(self, num_kv_heads=self.num_heads) if hasattr(self, 'num_kv_heads') else self
        C.cache_entries = lambda self, mod=mod: mod.cache_entries(self)


patch()
