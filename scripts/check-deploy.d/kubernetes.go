package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	documents "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// a duration as the operator's schema has it, without its rarer units
var duration = regexp.MustCompile(`^(([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?|0)$`)

// what all files together define and refer to
var defined, named, podLabels, selectors = map[string]bool{}, map[string]string{}, []map[string]string{}, map[string]*meta.LabelSelector{}

// kubernetes decodes every document of a file strictly into its type. Gives the number of documents.
func kubernetes(path string, found *faults) int {
	text, err := os.ReadFile(path)
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	looked := 0
	reader := documents.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return looked
		}
		if err != nil {
			found.add(path, "%v", err)
			return looked
		}
		// the comment above the first `---` is a document of nothing
		var kind meta.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			found.add(path, "%v", err)
			continue
		}
		if kind.Kind == "" {
			if len(bytes.TrimSpace(document)) > 0 && !bytes.HasPrefix(bytes.TrimSpace(document), []byte("#")) {
				found.add(path, "a document without a kind")
			}
			continue
		}
		looked++
		manifest(path, kind, document, found)
	}
}

// strict decodes a document into its type and refuses unknown and doubled fields.
func strict[T any](path string, document []byte, found *faults) (*T, bool) {
	object := new(T)
	if err := yaml.UnmarshalStrict(document, object); err != nil {
		found.add(path, "%v", err)
		return object, false
	}
	return object, true
}

func manifest(path string, kind meta.TypeMeta, document []byte, found *faults) {
	where := func(m meta.ObjectMeta) string {
		for _, message := range validation.IsDNS1123Subdomain(m.Name) {
			found.add(path, "%s %q: %s", kind.Kind, m.Name, message)
		}
		if m.Labels["app.kubernetes.io/name"] == "" {
			found.add(path, "%s %s has no app.kubernetes.io/name", kind.Kind, m.Name)
		}
		return fmt.Sprintf("%s: %s %s", path, kind.Kind, m.Name)
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "v1 ConfigMap":
		if o, ok := strict[core.ConfigMap](path, document, found); ok {
			at := where(o.ObjectMeta)
			defined["ConfigMap "+o.Name] = true
			for key := range o.Data {
				for _, message := range validation.IsConfigMapKey(key) {
					found.add(at, "%s: %s", key, message)
				}
			}
		}
	case "v1 Secret":
		if o, ok := strict[core.Secret](path, document, found); ok {
			at := where(o.ObjectMeta)
			defined["Secret "+o.Name] = true
			for key, value := range o.StringData {
				if value != "" {
					found.add(at, "%s has a value: secrets do not belong into files of a repository", key)
				}
			}
		}
	case "v1 Service":
		if o, ok := strict[core.Service](path, document, found); ok {
			selectors[where(o.ObjectMeta)] = meta.SetAsLabelSelector(o.Spec.Selector)
			defined["Service "+o.Name] = true
		}
	case "apps/v1 Deployment":
		if o, ok := strict[apps.Deployment](path, document, found); ok {
			pod(where(o.ObjectMeta), o.Spec.Selector, o.Spec.Template, nil, found)
		}
	case "apps/v1 StatefulSet":
		if o, ok := strict[apps.StatefulSet](path, document, found); ok {
			at := where(o.ObjectMeta)
			named["Service "+o.Spec.ServiceName] = at
			pod(at, o.Spec.Selector, o.Spec.Template, o.Spec.VolumeClaimTemplates, found)
		}
	case "policy/v1 PodDisruptionBudget":
		if o, ok := strict[policy.PodDisruptionBudget](path, document, found); ok {
			selectors[where(o.ObjectMeta)] = o.Spec.Selector
		}
	case "networking.k8s.io/v1 NetworkPolicy":
		if o, ok := strict[networking.NetworkPolicy](path, document, found); ok {
			selectors[where(o.ObjectMeta)] = &o.Spec.PodSelector
		}
	case "monitoring.coreos.com/v1 PodMonitor":
		if o, ok := strict[monitoring.PodMonitor](path, document, found); ok {
			selectors[where(o.ObjectMeta)] = &o.Spec.Selector
			for _, endpoint := range o.Spec.PodMetricsEndpoints {
				if !duration.MatchString(string(endpoint.Interval)) {
					found.add(path, "the interval %q is no duration", endpoint.Interval)
				}
				if endpoint.Port == nil || *endpoint.Port != "http" {
					found.add(path, "the PodMonitor scrapes a port that no pod has")
				}
			}
		}
	default:
		found.add(path, "%s %s is not a kind that this check knows", kind.APIVersion, kind.Kind)
	}
}

// pod holds a template against the restricted profile of pod security, and against what a sidecar needs.
func pod(where string, selector *meta.LabelSelector, template core.PodTemplateSpec, claims []core.PersistentVolumeClaim, found *faults) {
	spec := template.Spec
	podLabels = append(podLabels, template.Labels)
	if s, err := meta.LabelSelectorAsSelector(selector); err != nil || !s.Matches(labels.Set(template.Labels)) {
		found.add(where, "its selector does not match its pods")
	}
	volumes := map[string]bool{}
	for _, claim := range claims {
		volumes[claim.Name] = true
	}
	for _, volume := range spec.Volumes {
		volumes[volume.Name] = true
		switch {
		case volume.ConfigMap != nil:
			named["ConfigMap "+volume.ConfigMap.Name] = where
		case volume.EmptyDir != nil:
			if volume.EmptyDir.SizeLimit == nil {
				found.add(where, "the volume %s may fill the node", volume.Name)
			}
		default:
			found.add(where, "the volume %s is of a kind that this check does not know as restricted", volume.Name)
		}
	}
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		found.add(where, "shares a namespace with its host")
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		found.add(where, "holds a token of the Kubernetes API, which nothing here uses")
	}
	security := spec.SecurityContext
	switch {
	case security == nil || security.RunAsNonRoot == nil || !*security.RunAsNonRoot:
		found.add(where, "may run as root")
	case security.RunAsUser == nil || *security.RunAsUser == 0:
		found.add(where, "runAsUser has to be a number other than 0")
	case security.SeccompProfile == nil || security.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault:
		found.add(where, "has no seccomp profile RuntimeDefault")
	}
	all := append([]core.Container{}, spec.InitContainers...)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != core.ContainerRestartPolicyAlways {
			found.add(where, "%s is not a sidecar: restartPolicy has to be Always", c.Name)
		}
	}
	for _, c := range append(all, spec.Containers...) {
		container(where+"/"+c.Name, c, volumes, found)
	}
}

func container(where string, c core.Container, volumes map[string]bool, found *faults) {
	if why := pinned(c.Image); why != "" {
		found.add(where, "the image %s %s", c.Image, why)
	}
	s := c.SecurityContext
	switch {
	case s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation:
		found.add(where, "allows privilege escalation")
	case s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || len(s.Capabilities.Add) > 0:
		found.add(where, "keeps capabilities")
	case s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		found.add(where, "writes to its root file system")
	case s.Privileged != nil && *s.Privileged:
		found.add(where, "is privileged")
	}
	ports := map[string]bool{}
	for _, port := range c.Ports {
		for _, message := range validation.IsValidPortName(port.Name) {
			found.add(where, "port %s: %s", port.Name, message)
		}
		ports[port.Name] = true
	}
	probes := map[string]*core.Probe{"readiness": c.ReadinessProbe}
	if c.Name == "runwarden" {
		probes["startup"], probes["liveness"] = c.StartupProbe, c.LivenessProbe
		if c.LivenessProbe != nil && c.LivenessProbe.HTTPGet != nil && c.LivenessProbe.HTTPGet.Path != "/healthz" {
			found.add(where, "liveness has to be /healthz: others depend on Kafka")
		}
	}
	for name, probe := range probes {
		switch {
		case probe == nil:
			found.add(where, "has no %s probe", name)
		case probe.HTTPGet != nil && !ports[probe.HTTPGet.Port.StrVal]:
			found.add(where, "the %s probe asks a port that it does not have", name)
		}
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		found.add(where, "has to request cpu and memory, and limit memory")
	}
	for _, mount := range c.VolumeMounts {
		if !volumes[mount.Name] {
			found.add(where, "mounts the volume %s, which there is none of", mount.Name)
		}
	}
	for _, from := range c.EnvFrom {
		if from.SecretRef != nil {
			named["Secret "+from.SecretRef.Name] = where
		}
	}
	for _, variable := range c.Env {
		if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
			named["Secret "+variable.ValueFrom.SecretKeyRef.Name] = where
		}
	}
}

// references looks at what the files say of one another.
func references(found *faults) {
	for what, where := range named {
		if !defined[what] {
			found.add(where, "refers to the %s, which no file defines", what)
		}
	}
	for where, selector := range selectors {
		s, err := meta.LabelSelectorAsSelector(selector)
		if err != nil {
			found.add(where, "%v", err)
			continue
		}
		matched := false
		for _, set := range podLabels {
			matched = matched || s.Matches(labels.Set(set))
		}
		if !matched {
			found.add(where, "selects no pod")
		}
	}
}
