#!/usr/bin/env python3
"""A worker that obeys, in Python: sends the telemetry of its runs, follows the interventions, does what they say, reports it.

    pip install confluent-kafka
    python3 examples/worker.py --brokers localhost:9092 --tenant acme --runs 3

What a worker of your own has to do is in Worker.obey: read runwarden.interventions as a read_committed consumer, act on records whose
state is ISSUED, once for each intervention_id, and report ACKNOWLEDGED and then SUCCEEDED or FAILED on runwarden.outcomes, keyed by
the tenant.
"""

import argparse
import json
import os
import time

from confluent_kafka import Consumer, Producer, TopicPartition


class Worker:
    def __init__(self, arguments):
        self.arguments = arguments
        # murmur2_random is the partitioner of Java clients: a tenant's records then lie where their owner reads them
        self.producer = Producer(
            {
                "bootstrap.servers": arguments.brokers,
                "enable.idempotence": True,
                "linger.ms": 1,
                "partitioner": "murmur2_random",
            }
        )
        self.consumer = Consumer(
            {
                "bootstrap.servers": arguments.brokers,
                "group.id": f"worker-{os.getpid()}-{time.time_ns()}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        topic = f"{arguments.prefix}runwarden.interventions"
        partitions = self.consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = [self.consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions]
        # every worker reads all interventions, from now on
        self.consumer.assign([TopicPartition(topic, p, end) for p, end in zip(partitions, ends)])
        self.done, self.stopped, self.paused = set(), set(), set()
        self.number = 0

    def send(self, topic, value):
        key = self.arguments.tenant
        self.producer.produce(f"{self.arguments.prefix}{topic}", json.dumps(value), key=key)
        self.producer.poll(0)

    def telemetry(self, kind, run, **fields):
        self.number += 1
        event = {
            "event_id": f"{run}-{os.getpid()}-{self.number}",
            "event_time": time.time_ns() // 1_000_000,
            "event_type": kind,
            "tenant_id": self.arguments.tenant,
            "run_id": run,
            "agent_id": f"{self.arguments.run}-agent",
        }
        self.send("runs.telemetry", event | fields)

    def report(self, order, state, message):
        outcome = {
            "intervention_id": order["intervention_id"],
            "state": state,
            "executor": f"{self.arguments.run}-worker",
            "at": time.time_ns() // 1_000_000,
            "message": message,
        }
        self.send("runwarden.outcomes", outcome)

    def obey(self, wait):
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0:
            message = self.consumer.poll(left)
            if message is None or message.error() or not message.value():
                continue
            order = json.loads(message.value())
            target = order.get("target", {})
            run = target.get("id", "")
            ours = order.get("tenant_id") == self.arguments.tenant and target.get("kind") == "RUN"
            if not ours or order.get("state") != "ISSUED" or not run.startswith(self.arguments.run):
                continue
            # a record may be read twice
            if order["intervention_id"] in self.done:
                continue
            self.done.add(order["intervention_id"])
            print(f"{order['type']} {run}: {order['reason']}", flush=True)
            self.report(order, "ACKNOWLEDGED", "on it")
            if order["type"] == "PAUSE":
                self.paused.add(run)
            elif order["type"] == "RESUME":
                self.paused.discard(run)
            elif order["type"] in ("STOP", "KILL"):
                self.stopped.add(run)
                self.telemetry("run.failed", run)
            self.report(order, "SUCCEEDED", "done")

    def work(self, run):
        self.telemetry("run.started", run)
        for _ in range(self.arguments.steps):
            if run in self.stopped:
                return
            if run not in self.paused:
                self.telemetry("run.step", run, input_tokens=self.arguments.tokens)
            self.obey(self.arguments.pace / 1000)
        self.telemetry("run.completed", run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", default="localhost:9092", help="bootstrap servers")
    parser.add_argument("--prefix", default="", help="what the names of the topics begin with")
    parser.add_argument("--tenant", default="acme", help="tenant of the runs")
    parser.add_argument("--run", default="run", help="what the names of the runs begin with")
    parser.add_argument("--runs", type=int, default=1, help="how many runs, one after the other")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of a step")
    parser.add_argument("--pace", type=int, default=50, help="milliseconds between the steps of a run")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run that nobody stops")
    worker = Worker(parser.parse_args())
    for number in range(worker.arguments.runs):
        worker.work(f"{worker.arguments.run}-{number}")
    worker.producer.flush(10)
    worker.consumer.close()
    print(f"stopped {len(worker.stopped)} of {worker.arguments.runs} runs")


if __name__ == "__main__":
    main()
