"""The wire: frames, messages, authentication, and one driver each for blocking and asyncio code."""
