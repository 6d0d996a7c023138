"""Stub until merged."""


def init_average(config, params):
  return None


def update_average(config, average, params, step, steps):
  return average


def averaged(config, average, params):
  return params
