# Every target installs what it needs by itself and leaves no process behind (`make run` leaves the virtual machine that it shows, `make cluster` the cluster).
.PHONY: run clean-run test test-cluster image bench bench-cluster fuzz reference cluster cluster-down help

help:
	@echo "make run        install, build, start berth and boot a virtual machine"
	@echo "make clean-run  remove every trace of make run"
	@echo "make test       format, lints, unit tests and end-to-end tests with real guests"
	@echo "make test-cluster  the end-to-end tests on a real Kubernetes that it builds"
	@echo "make image      berth's image for clusters, as a file"
	@echo "make bench      measure start-up, memory and the rest, and print the figures"
	@echo "make bench-cluster  measure many virtual machines on a real Kubernetes that it builds"
	@echo "make fuzz       fuzz the parsers for a bounded time"
	@echo "make reference  build the real kube-apiserver, etcd and kubectl that the tests compare with"
	@echo "make cluster    build and start a real Kubernetes on this machine (make cluster-down removes it)"

run:
	@scripts/run.sh

clean-run:
	@scripts/clean-run.sh

test:
	@scripts/test.sh

test-cluster:
	@scripts/test-cluster.sh

image:
	@scripts/image.sh

bench:
	@scripts/bench.sh

bench-cluster:
	@scripts/bench-cluster.sh

fuzz:
	@scripts/fuzz.sh

reference:
	@scripts/reference.sh

cluster:
	@scripts/cluster.sh

cluster-down:
	@scripts/cluster-down.sh
