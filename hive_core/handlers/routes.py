"""Every request there is, what answers it, and who may ask.  The doors look here and nowhere else.

A handler is a plain function that gives a result or a Deferred of one, or an async function that gives
a result; a stream's is an async function that emits items until it ends or its reader goes.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from hive_core.broker import Handover
from hive_core.handlers import (
    agents,
    approval_card,
    approvals,
    backups,
    dead,
    deploys,
    events,
    harness,
    machines,
    messages,
    moves,
    questions,
    reminders,
    requests,
    search,
    stats,
    status,
    threads,
    tombstones,
)
from hive_core.handlers import retention as retentions
from hive_core.handlers.deps import Role
from hive_core.wire import agent, agent_manager, approval, host, question, reminder, retention
from hive_core.wire import allow as allow_wire
from hive_core.wire import dead as dead_wire
from hive_core.wire import search as search_wire
from hive_core.wire.errors import ErrorCode, Refused


@dataclass(frozen=True)
class Route:
    handler: Callable[..., Any]
    may_call: Role
    result: type
    """What a call gives, or each item of a stream."""
    stream: bool = False
    following: Callable[..., Any] | None = None
    """Answers instead of *handler*, as a stream, when the request's `follow` is true."""
    check: Callable[..., None] | None = None
    """Called before a stream is accepted, to refuse it."""
    hand_over: Callable[..., Handover | None] | None = None
    """Given a result, gives what to call when it has reached its caller, and when it has not."""

    @cached_property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.handler)

    def admits(self, role: Role) -> bool:
        """Whether a peer of *role* may call it."""
        return role is self.may_call or (role is Role.MANAGER and self.may_call is Role.AGENT)


def route_of(request: msgspec.Struct, role: Role) -> Route:
    """Give what answers *request* of a peer of *role*.

    Raises:
        Refused: FORBIDDEN.
    """
    route = ROUTES[type(request)]
    if not route.admits(role):
        text = f"cannot {request.__struct_config__.tag}: only the {route.may_call} may"
        raise Refused(ErrorCode.FORBIDDEN, text)
    return route


_OP: Final = Role.OPERATOR
_AG: Final = Role.AGENT
_MA: Final = Role.MANAGER

ROUTES: Final[Mapping[type, Route]] = {
    # host.sock: the verbs of the original
    host.List: Route(agents.list_agents, _OP, host.Agents),
    host.AgentStatus: Route(agents.agent_status, _OP, host.AgentStatuses),
    host.SubscribeAgentStatus: Route(agents.subscribe_agent_status, _OP, host.AgentStatuses, stream=True),
    host.SetPaused: Route(agents.set_paused, _OP, host.Reply),
    host.Start: Route(agents.start, _OP, host.Reply),
    host.Stop: Route(agents.stop, _OP, host.Reply),
    host.Restart: Route(agents.restart, _OP, host.Reply),
    host.UrlsRequest: Route(agents.urls, _OP, host.UrlsReply),
    approval.Pending: Route(approvals.pending, _OP, approval.Approvals),
    approval.Approve: Route(approvals.approve, _OP, host.Reply),
    approval.Deny: Route(approvals.deny, _OP, host.Reply),
    approval.RequestSpawn: Route(approvals.request_spawn, _OP, approval.Requested),
    host.Spawn: Route(machines.spawn, _OP, host.Reply),
    host.Kill: Route(agents.kill, _OP, host.Reply),
    host.Destroy: Route(agents.destroy, _OP, host.Reply),
    # host.sock: ours
    host.Send: Route(messages.operator_send, _OP, host.Sent),
    host.Inbox: Route(messages.inbox, _OP, host.Messages),
    host.MessagesRequest: Route(messages.messages, _OP, host.Messages),
    host.Why: Route(messages.why, _OP, host.Messages),
    host.Events: Route(
        events.events, _OP, host.EventsReply, following=events.follow_events, check=events.check_agent
    ),
    host.Logs: Route(
        events.logs, _OP, host.LogsReply, following=events.follow_logs, check=events.check_agent
    ),
    host.Watch: Route(events.watch, _OP, host.WatchItem, stream=True, check=events.check_agents),
    host.CancelTurn: Route(harness.cancel_turn, _OP, host.Carried),
    host.NewSession: Route(harness.new_session, _OP, host.Carried),
    host.SetModel: Route(harness.set_model, _OP, host.Carried),
    host.SetEffort: Route(harness.set_effort, _OP, host.Carried),
    host.Compact: Route(harness.compact, _OP, host.Carried),
    host.LoginStart: Route(harness.login_start, _OP, host.LoginUrl),
    host.LoginCode: Route(harness.login_code, _OP, host.Carried),
    host.LoginCancel: Route(harness.login_cancel, _OP, host.Carried),
    host.Stats: Route(stats.stats, _OP, host.StatsReply),
    question.Questions: Route(questions.questions, _OP, question.QuestionsReply),
    question.Ask: Route(questions.operator_ask, _OP, question.Asked),
    question.Answer: Route(questions.operator_answer, _OP, question.Answered),
    question.CancelQuestion: Route(questions.cancel, _OP, host.Reply),
    allow_wire.Allow: Route(agents.allow, _OP, host.Reply),
    dead_wire.Dead: Route(dead.dead, _OP, dead_wire.DeadLetters),
    dead_wire.DeadRetry: Route(dead.retry, _OP, dead_wire.Retried),
    dead_wire.DeadDrop: Route(dead.drop, _OP, host.Reply),
    search_wire.Thread: Route(search.thread, _OP, host.Messages),
    search_wire.Search: Route(search.find, _OP, search_wire.Found),
    reminder.Reminders: Route(reminders.reminders, _OP, reminder.RemindersReply),
    reminder.CancelReminder: Route(reminders.cancel, _OP, host.Reply),
    reminder.RetryReminder: Route(reminders.retry, _OP, host.Reply),
    retention.Vacuum: Route(retentions.vacuum, _OP, retention.VacuumReply),
    retention.BackupCreate: Route(backups.create, _OP, retention.ArchiveReply),
    retention.Backups: Route(backups.archives, _OP, retention.BackupsReply),
    retention.BackupVerify: Route(backups.verify, _OP, retention.ArchiveReply),
    retention.Export: Route(backups.export, _OP, retention.ArchiveReply),
    retention.Import: Route(backups.take_in, _OP, retention.ArchiveReply),
    host.Rebuild: Route(machines.rebuild, _OP, host.Reply),
    host.SetLimits: Route(machines.set_limits, _OP, host.Reply),
    host.MachineRequest: Route(machines.machine, _OP, host.MachineReply),
    host.Top: Route(machines.top, _OP, host.TopReply),
    host.Doctor: Route(machines.doctor, _OP, host.DoctorReply),
    host.Images: Route(machines.images, _OP, host.ImagesReply),
    host.ImageRm: Route(machines.image_rm, _OP, host.Reply),
    host.Status: Route(status.status, _OP, host.StatusReply),
    approval.ApprovalsRequest: Route(approvals.approvals, _OP, approval.Approvals),
    approval.ShowApproval: Route(approval_card.show, _OP, approval.ApprovalReply),
    approval.RequestInitConfig: Route(approvals.request_init, _OP, approval.Requested),
    approval.RequestApplyCommit: Route(approvals.request_commit, _OP, approval.Requested),
    approval.RequestUpdateInputs: Route(approvals.request_inputs, _OP, approval.Requested),
    approval.CancelApproval: Route(approvals.cancel, _OP, host.Reply),
    approval.ConfigRequest: Route(approvals.config, _OP, approval.ConfigReply),
    approval.Deploys: Route(deploys.deploys, _OP, approval.DeploysReply, following=deploys.follow_deploys),
    approval.DeployLog: Route(deploys.deploy_log, _OP, approval.DeployLogReply),
    approval.Rollback: Route(deploys.rollback, _OP, approval.RollbackReply),
    approval.History: Route(deploys.history, _OP, approval.HistoryReply),
    approval.Tombstones: Route(tombstones.tombstones, _OP, approval.TombstonesReply),
    approval.Purge: Route(tombstones.purge, _OP, host.Reply),
    # an agent's socket
    agent.Send: Route(messages.send, _AG, agent.Sent),
    agent.Recv: Route(messages.recv, _AG, agent.Messages, hand_over=messages.hand_over),
    agent.AckTurn: Route(messages.ack_turn, _AG, agent.Acked),
    agent.RequeueInflight: Route(messages.requeue_inflight, _AG, agent.Requeued),
    agent.SetAside: Route(dead.set_aside, _AG, agent.Done),
    agent.InboxStatus: Route(messages.inbox_status, _AG, agent.Unread),
    agent.Recent: Route(messages.recent, _AG, agent.Messages),
    agent.Wake: Route(messages.wake, _AG, agent.Sent),
    agent.RequestNextTurn: Route(messages.request_next_turn, _AG, agent.NextTurn),
    agent.OperatorMsg: Route(messages.operator_msg, _AG, agent.Sent),
    agent.Ask: Route(questions.ask, _AG, agent.Asked),
    agent.Answer: Route(questions.answer, _AG, agent.Done),
    agent.OpenThreads: Route(threads.open_threads, _AG, agent.Threads),
    agent.CancelThread: Route(threads.cancel_thread, _AG, agent.Done),
    agent.Remind: Route(reminders.remind, _AG, agent.Reminded),
    agent.CountPendingReminders: Route(reminders.count_pending, _AG, agent.PendingReminders),
    agent.Whoami: Route(harness.whoami, _AG, agent.Identity),
    agent.SetStatus: Route(harness.set_status, _AG, agent.Done),
    agent.Logs: Route(events.own_logs, _AG, agent.LogLines),
    agent.Publish: Route(harness.publish, _AG, agent.Done),
    agent.SubscribeControl: Route(harness.subscribe_control, _AG, agent.SetPaused, stream=True),
    agent.ControlDone: Route(harness.control_done, _AG, agent.Done),
    # the manager's socket
    agent_manager.RequestSpawn: Route(requests.request_spawn, _MA, agent_manager.Requested),
    agent_manager.RequestInitConfig: Route(requests.request_init_config, _MA, agent_manager.Requested),
    agent_manager.RequestApplyCommit: Route(requests.request_apply_commit, _MA, agent_manager.Requested),
    agent_manager.RequestUpdateInputs: Route(requests.request_update_inputs, _MA, agent_manager.Requested),
    agent_manager.OpenConfig: Route(requests.open_config, _MA, agent.Done),
    agent_manager.ListApprovals: Route(requests.list_approvals, _MA, agent_manager.Approvals),
    agent_manager.ListAgents: Route(moves.list_agents, _MA, agent_manager.Agents),
    agent_manager.Kill: Route(moves.kill, _MA, agent.Done),
    agent_manager.Start: Route(moves.start, _MA, agent.Done),
    agent_manager.Restart: Route(moves.restart, _MA, agent.Done),
    agent_manager.Update: Route(moves.update, _MA, agent.Done),
}
