"""lethe inside other people's training loops."""

from lethe.integrations.probe import ForgettingProbe as ForgettingProbe
