"""The life of one model of a coordinator: opened, served, and opened again when that failed."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig
from coordinator.core.catalog import CatalogModel
from coordinator.doors.access.caller_engine import CallerEngine
from coordinator.doors.access.caller_shares import CallerShares
from coordinator.engine.engine import Engine
from coordinator.engine.readiness import Readiness
from coordinator.observe.observer import EngineObserver
from coordinator.stage_waits import StageWaits
from stagecoach.contract.cluster_status import ModelState, ModelStatus, StageState, StageStatus
from stagecoach.contract.errors import StagecoachError, UnavailableError
from stagecoach.model_files import ModelFiles, model_id_of, open_model
from stagecoach.process.load_display import Display, Lines
from stagecoach.security.credentials import read_tls

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Shortest and longest time between two tries to open a model; doubled each time."""

_log = logging.getLogger(__name__)


class ModelKeeper:
    """Keeps one model served. Implements `RunningEngine` while there is an engine and while not.

    The only model of a process ends it when it cannot be opened or its engine has a bug. One of
    several is tried again, and disturbs no other. Event loop only.

    Args:
        cluster: The model and its stages.
        listed: Its place in the catalog.
        is_only: True when the process serves no other.
        shares: Shares of all callers of the process.
        on_engine: Told of each engine, before requests reach it.
        observers: Told what each engine does.
        files: The model's, when they are open already.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        listed: CatalogModel,
        *,
        is_only: bool,
        shares: CallerShares,
        on_engine: Callable[[Engine], None],
        observers: Sequence[EngineObserver],
        files: ModelFiles | None = None,
    ) -> None:
        self.listed = listed
        self.settled = asyncio.Event()
        """Set when the first try to open the model has ended, in whatever way."""
        self._cluster = cluster
        self._is_only = is_only
        self._shares = shares
        self._on_engine = on_engine
        self._observers = observers
        self._files = files
        self._engine: Engine | None = None
        self._readiness = Readiness()
        self._following: asyncio.Task[None] | None = None

    async def run(self, display: Display) -> None:
        """Opens the model and serves it, again and again, until it is closed or cancelled.

        A cancelled call leaves the engine as it is, for `close`.

        Args:
            display: Shows how the stages answer at the first try; later ones are for the log.

        Raises:
            Exception: It is the only model, and cannot be served.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                engine = await self._open(display)
                pause_s = FIRST_PAUSE_S
                await engine.wait_stopped()
                return
            except Exception as error:
                if self._is_only:
                    raise
                self._note(error)
            finally:
                self.settled.set()
            await self._end(grace_s=0.0)  # of an engine that a bug has stopped
            display = Lines(_log.info)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    @property
    def is_ready(self) -> bool:
        """True while requests of the model are served."""
        return self._readiness.is_ready

    async def wait_ready(self, *, ready: bool) -> None:
        """Returns when `is_ready` has become so."""
        await self._readiness.wait(ready)

    async def status(self) -> ModelStatus:
        """The state of the model and of every stage; what only an engine knows is 0 without one."""
        if self._engine is not None:
            return await self._engine.status()
        return ModelStatus(
            model_id=model_id_of(self._cluster.model),
            names=self.listed.names,
            ready=False,
            problem=self.listed.problem,
            failed=self.listed.state is ModelState.FAILED,
            has_tokenizer=False,
            stages=tuple(
                StageStatus(
                    index=index, address=str(address), state=StageState.CONNECTING, info=None
                )
                for index, stage in enumerate(self._cluster.stages)
                for address in stage
            ),
            num_running=0,
            num_waiting=0,
            max_num_seqs=0,
            num_kv_blocks=0,
            num_free_kv_blocks=0,
            num_cached_kv_blocks=0,
            max_model_len=0,
            num_finished=0,
            num_generated_tokens=0,
            num_preemptions=0,
            num_prefix_query_tokens=0,
            num_prefix_hit_tokens=0,
            num_draft_tokens=0,
            num_accepted_draft_tokens=0,
            tokens_per_second=0.0,
        )

    async def close(self, grace_s: float) -> None:
        """Admits nothing more, lets requests finish within the grace time, fails the rest."""
        await self._end(grace_s=grace_s)

    async def _open(self, display: Display) -> Engine:
        waits = StageWaits(display)

        def on_stage(address: str, error: StagecoachError | None) -> None:
            why = waits.update(address, error)
            # That stages answer does not mean that they fit this time.
            if error is not None or self.listed.state is not ModelState.FAILED:
                self.listed.loading(why)

        if self._cluster.stage_tls is not None:
            read_tls(self._cluster.stage_tls)  # before anything waits for a stage
        if self._files is None:
            self._files = await asyncio.to_thread(open_model, self._cluster.model)
        engine = await open_engine(self._cluster, self._files, on_stage, self._observers)
        self._engine = engine
        self._on_engine(engine)
        self.listed.open(CallerEngine(engine, self._shares))
        self._following = asyncio.create_task(self._follow(engine), name="model readiness")
        engine.read_vocabulary()
        self.settled.set()
        return engine

    async def _follow(self, engine: Engine) -> None:
        """Keeps the readiness that of the engine."""
        while True:
            self._readiness.set(engine.is_ready)
            await engine.wait_ready(ready=not engine.is_ready)

    def _note(self, error: Exception) -> None:
        """Lists the model with what went wrong."""
        facts = {"model": self.listed.names[0], "error": str(error)}
        if isinstance(error, UnavailableError):
            _log.warning("the model waits for its stages", extra=facts)
            self.listed.loading(error.message)
            return
        if isinstance(error, StagecoachError):
            _log.error("the model cannot be served", extra=facts)
            self.listed.fail(self._for_clients(error.message))
            self._files = None  # which may be what is mended
            return
        _log.error("the model cannot be served", exc_info=error, extra=facts)
        self.listed.fail("its engine stopped; see the coordinator's log")

    def _for_clients(self, message: str) -> str:
        """A message that does not say where files lie, but which model's they are."""
        model = self._cluster.model
        is_path = model.startswith(("/", ".", "~"))
        return message.replace(model, self.listed.names[0]) if is_path else message

    async def _end(self, *, grace_s: float) -> None:
        """Closes the engine, if there is one."""
        if self._engine is not None:
            await self._engine.close(grace_s)
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        self._engine = self._following = None
        self._readiness.set(False)
