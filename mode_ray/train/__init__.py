"""Seed model, dense baseline and experts: budgets, data order, loop, one Ray Train run each, and their scheduler."""
