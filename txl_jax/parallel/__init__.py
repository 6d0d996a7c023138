"""Devices: the mesh and what is sharded how. Nothing else knows them."""
