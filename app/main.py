"""Builds the application: settings, service, routes, errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app import errors
from app.middleware import RequestContext
from app.routes import operations, transcribe
from app.service import Service
from app.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The application; its lifespan starts and stops the :class:`Service`, which is ``app.state.service``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(settings)
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(title="Kimi Transcribe", lifespan=lifespan, redirect_slashes=False)
    app.include_router(transcribe.router)
    app.include_router(operations.router)
    app.state.paths = {route.path: route.methods for route in app.routes if isinstance(route, APIRoute)}
    errors.install(app)
    app.add_middleware(RequestContext, routes=app.routes)
    return app
