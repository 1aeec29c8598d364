"""Every row of the failure table in docs/kubernetes.md is a test."""

from __future__ import annotations

import re

from components.provenance import REPOSITORY

TESTS = {
    "eviction, node loss, preemption, restarted machine, a pod that its node refuses": (
        "test_job_handle: a_pod_that_lost_its_machine_is_replaced_and_the_job_succeeds, "
        "a_job_that_evictions_ended_is_submitted_again",
        "test_machines: a_restarted_machine_is_not_taken_for_a_lack_of_memory, "
        "a_pod_that_its_node_refuses_is_replaced_and_the_node_is_told",
    ),
    "a machine fails or refuses pods twice": (
        "test_machines: a_job_leaves_a_machine_that_failed_twice, an_avoided_machine_is_used_again_if_no_other_has_room, "
        "a_node_that_refuses_two_pods_is_left",
    ),
    "a machine stops reporting": ("test_machines: a_machine_that_stops_reporting_is_named_before_its_pods_are_deleted",),
    "machine without power": (
        "test_machines: a_machine_without_power_is_named_while_waiting_in_the_list_and_while_cancelling",
        "test_failures: a_node_that_does_not_confirm_the_end_of_a_pod_is_named_with_the_command",
    ),
    "machine under maintenance for longer than 30 min": (
        "test_machines: a_job_that_has_run_waits_for_its_machine_beyond_the_pending_limit",
    ),
    "OOMKilled": ("test_job_handle: out_of_memory_stops_at_once_and_names_the_setting",),
    "an injected container fails": (
        "test_machines: an_injected_container_without_memory_does_not_end_a_running_job",
        "test_failures: an_injected_container_is_looked_at_only_in_a_failed_pod",
    ),
    "the pod is evicted because it exceeds its own local disk": (
        "test_machines: a_pod_that_fills_its_own_scratch_disk_stops_at_once",
    ),
    "image cannot be pulled, or its signature is refused": (
        "test_job_handle: an_image_that_cannot_be_pulled_stops_after_its_limit_with_the_remedy, "
        "an_invalid_image_name_stops_at_once",
    ),
    "the image lacks the program": ("test_machines: a_program_that_the_image_lacks_stops_at_once_and_a_broken_driver_does_not",),
    "a volume is not mounted, a network or device plugin fails": (
        "test_pod_start: a_volume_that_cannot_be_mounted_is_told_and_ends_the_job_after_the_pending_limit, "
        "other_warnings_of_a_node_are_told_with_a_remedy",
    ),
    "no scheduler looks at the pods, or nobody tells why they do not start": (
        "test_pod_start: a_pod_that_no_scheduler_looks_at_is_told_and_ends_the_job_after_the_pending_limit, "
        "a_pod_about_which_nothing_is_told_ends_the_job_after_the_pending_limit",
    ),
    "no machine with enough GPUs": ("test_job_handle: no_machine_with_gpus_stops_after_its_limit_and_quotes_the_scheduler",),
    "Secret, claim, ResourceClaimTemplate, service account or PriorityClass missing; a webhook or Pod Security refuses the pod": (
        "test_job_handle: a_missing_secret_or_claim_is_named",
        "test_control_plane: a_missing_claim_in_the_words_of_the_scheduler_stops_after_seconds, "
        "a_missing_claim_template_in_the_words_of_the_scheduler_stops_after_seconds, "
        "the_events_explain_why_no_pods_are_created",
        "test_failures: a_quota_that_can_never_fit_is_told_apart_from_one_in_use",
    ),
    "some pods are not created: quota in use": (
        "test_control_plane: one_of_two_pods_refused_by_a_quota_in_use_is_told_and_ends_after_the_pending_limit",
    ),
    "the request is larger than the quota": ("test_control_plane: a_request_above_the_hard_limit_stops_at_once",),
    "JobSet or TrainJob without a controller": ("test_control_plane: a_custom_resource_without_a_controller_is_told",),
    "Kueue will never admit the job: wrong queue or namespace, a resource or taint that the ClusterQueue does not cover, "
    "a rejected admission check, a deactivated Workload": (
        "test_control_plane: the_reason_of_a_queue_is_told_and_a_wrong_queue_ends_the_job",
        "test_failures: the_reason_of_a_queue_is_told, what_a_queue_never_admits_is_told_apart",
    ),
    "a queue is set, and the cluster has no Kueue": ("test_control_plane: a_queue_on_a_cluster_without_kueue_is_refused",),
    "the cluster serves JobSet or TrainJob in another version": (
        "test_launcher: a_group_that_is_served_only_in_another_version_is_not_used",
    ),
    "wrong configuration (exit status 2)": ("test_job_handle: a_configuration_error_is_not_retried",),
    "the program raises an exception": (
        "test_job_handle: a_program_that_fails_shows_the_end_of_its_log",
        "test_machines: a_program_that_fails_ends_the_job_at_once",
    ),
    "a process crashes, a GPU or the storage fails": (
        "../test_elastic_agent: a_pod_restarts_its_processes_only_after_a_fault_of_the_machine",
    ),
    "pods of a deleted job still run (`--cascade=orphan`)": (
        "test_control_plane: pods_that_outlived_their_job_are_not_joined_by_a_second_writer, "
        "a_job_that_outlived_its_jobset_is_named_since_it_replaces_deleted_pods",
    ),
    "the job exists in another rendering (JobSets were installed since)": (
        "test_launcher: a_job_of_another_rendering_is_found_and_waited_for",
    ),
    "the job fails before its pods have a final status": (
        "test_job_handle: out_of_memory_is_named_if_the_pod_has_no_final_status_when_the_job_fails, "
        "a_failed_job_whose_pods_have_no_final_status_is_reported_with_the_message_of_its_controller",
    ),
    "time limit": ("test_failures: a_time_limit_inside_a_jobset_is_reported_as_a_time_limit",),
    "403": (
        "test_api_client: forbidden_names_the_verb_the_path_and_the_remedy",
        "test_control_plane: an_api_server_that_starts_and_refuses_everything_is_waited_for, "
        "a_verb_that_was_never_permitted_is_refused_at_once_although_others_are",
    ),
    "401": (
        "test_api_client: expired_credentials_are_reported_at_once",
        "test_control_plane: credentials_that_a_starting_api_server_rejects_are_sent_again",
    ),
    "the API server shows a certificate of another authority": (
        "test_service_account: the_token_is_not_sent_to_an_api_server_of_another_authority",
    ),
    "409": ("test_api_client: a_conflict_with_another_submitter_yields_the_same_job",),
    "409, the name belongs to another owner": (
        "test_api_client: an_object_of_another_owner_with_the_same_name_is_not_changed",
        "test_control_plane: the_service_of_another_owner_is_reported",
    ),
    "429, 5xx, timeout, connection reset": (
        "test_api_client: transient_failures_are_retried, pauses_grow_to_their_maximum_and_differ_between_clients",
        "test_control_plane: a_proxy_that_sends_a_date_in_retry_after_is_waited_for",
    ),
    "500 that comes back: a field that the installed resource does not declare, an object that is too large": (
        "test_control_plane: a_field_that_the_installed_resource_does_not_declare_stops_at_once, "
        "a_500_that_comes_back_each_time_stops_at_once",
    ),
    'watch 410; etcd restored from a backup ("Too large resource version")': (
        "test_api_client: a_watch_whose_history_expired_lists_again",
        "test_control_plane: an_api_server_restored_from_a_backup_is_listed_again",
    ),
    "an earlier object of this name is still being deleted (finalizer)": (
        "test_control_plane: a_runtime_that_is_still_being_deleted_is_waited_for, a_finalizer_that_nobody_removes_is_named",
    ),
    "the namespace does not exist": ("test_control_plane: a_namespace_that_does_not_exist_is_named_with_its_setting",),
    "the node cannot send the log of a finished pod, or sends a message in its place": (
        "test_control_plane: a_log_that_the_kubelet_cannot_send_is_told_and_does_not_delay_the_success, "
        "a_message_that_a_kubelet_sends_as_a_log_is_told_and_every_line_is_kept",
    ),
    "log stream breaks": ("test_api_client: a_log_stream_that_breaks_anywhere_loses_and_repeats_no_line",),
    "API server unreachable for a minute": ("test_api_client: an_unreachable_api_server_is_waited_for",),
    "API server unreachable permanently": (
        "test_api_client: an_api_server_that_stays_unreachable_is_given_up_and_the_job_keeps_running",
    ),
    "two flows at the same time": ("test_launcher: two_concurrent_submitters_share_one_job_and_one_log",),
    "cancellation during the start": (
        "test_launcher: a_job_cancelled_during_its_start_is_deleted_and_other_jobs_are_not_affected",
    ),
    "another process or user deletes the job": (
        "test_job_handle: a_deleted_job_is_called_deleted_however_often_it_is_looked_for",
        "test_launcher: a_job_cancelled_during_its_start_is_deleted_and_other_jobs_are_not_affected",
    ),
    "the flow is killed and restarted": ("test_launcher: a_killed_and_restarted_process_finds_its_job_and_continues_its_log",),
    "suspended by Kueue": ("test_job_handle: a_job_suspended_by_kueue_is_waited_for_without_limit_and_names_its_queue",),
}


def read_events() -> list[str]:
    """Return the first column of the failure table."""
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    section = page.partition("\n## Failures\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")]
    assert rows[0] == "event"
    return rows[1:]


def test_the_rows_of_the_failure_table_are_those_that_are_tested() -> None:
    assert read_events() == list(TESTS)


def test_every_named_test_exists() -> None:
    folder = REPOSITORY / "tests" / "components" / "launching" / "kubernetes"
    for entries in TESTS.values():
        for entry in entries:
            file, _, names = entry.partition(": ")
            defined = set(re.findall(r"^def test_(\w+)\(", (folder / f"{file}.py").read_text(), re.MULTILINE))
            assert set(names.split(", ")) <= defined, (file, set(names.split(", ")) - defined)
