package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// compose loads a file as `docker compose` does: schema, interpolation, normalisation, consistency. Gives the number of services.
// With CHECK_DEPLOY_JSON the loaded project goes there, for those who run it without containers.
func compose(path string, found *faults) int {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithName("runwarden"), cli.WithWorkingDirectory(filepath.Dir(path)))
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	for name, service := range project.Services {
		where := path + ": " + name
		switch {
		case service.Build != nil:
			if _, err := os.Stat(filepath.Join(service.Build.Context, service.Build.Dockerfile)); err != nil {
				found.add(where, "%v", err)
			}
		case pinned(service.Image) != "":
			found.add(where, "the image %s %s", service.Image, pinned(service.Image))
		}
		for _, volume := range service.Volumes {
			if volume.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(volume.Source); err != nil {
				found.add(where, "is mounted and not there: %v", err)
			}
			if !volume.ReadOnly {
				found.add(where, "%s is mounted to be written to", volume.Source)
			}
		}
		for _, port := range service.Ports {
			if port.HostIP != "127.0.0.1" {
				found.add(where, "port %s is published beyond this host", port.Published)
			}
		}
		for on, dependency := range service.DependsOn {
			if dependency.Condition == types.ServiceConditionHealthy && project.Services[on].HealthCheck == nil {
				found.add(where, "waits for %s to be healthy, which has no healthcheck", on)
			}
		}
		if service.Privileged || strings.HasPrefix(service.NetworkMode, "host") {
			found.add(where, "has more rights than it needs")
		}
	}
	if to := os.Getenv("CHECK_DEPLOY_JSON"); to != "" {
		if text, err := json.MarshalIndent(project, "", " "); err != nil {
			found.add(path, "%v", err)
		} else if err := os.WriteFile(to, text, 0o600); err != nil {
			found.add(to, "%v", err)
		}
	}
	return len(project.Services)
}
