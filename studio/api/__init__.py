"""The HTTP API under /api/v1: what a program can ask the studio for, who may ask, and how often.

    from studio.api.app import create_app

    app = create_app(Studio())                                  # for this machine alone
    app = create_app(Studio(), ApiSettings(login=True))         # for others, with tokens of `studio token create`

Importing this package loads nothing; its modules need the extra `ui`.
"""
