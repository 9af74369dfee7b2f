"""The provider `claude`: Claude Code's own command line."""

from hive_agent.providers.claude.provider import Claude

__all__ = ["Claude"]
