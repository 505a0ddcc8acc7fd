// Holds what runwarden is deployed with against the formats' own libraries, without a container engine: scripts/check-deploy calls it.
//
//	check-deploy compose FILE         the compose specification's loader; what is mounted exists
//	check-deploy kubernetes FILE…     strict decoding into the typed API, and the rules of restricted pods
//	check-deploy dockerfile FILE…     BuildKit's parser, and rules for images
//
// Prints one line for each fault, and what it looked at; exit code 1 with a fault.
package main

import (
	"fmt"
	"os"
	"strings"
)

// faults collects what is wrong, each with where it is.
type faults []string

func (f *faults) add(where, format string, arguments ...any) {
	*f = append(*f, where+": "+fmt.Sprintf(format, arguments...))
}

// pinned says why an image name is not fixed to a version, or "".
func pinned(image string) string {
	name, digest, _ := strings.Cut(image, "@")
	if digest != "" {
		return ""
	}
	_, tag, found := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	switch {
	case !found || tag == "":
		return "has no tag"
	case tag == "latest":
		return "is latest, which moves"
	}
	return ""
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "check-deploy compose|kubernetes|dockerfile FILE…")
		os.Exit(2)
	}
	var found faults
	looked := 0
	for _, path := range os.Args[2:] {
		switch os.Args[1] {
		case "compose":
			looked += compose(path, &found)
		case "kubernetes":
			looked += kubernetes(path, &found)
		case "dockerfile":
			looked += dockerfile(path, &found)
		default:
			fmt.Fprintln(os.Stderr, "no such check:", os.Args[1])
			os.Exit(2)
		}
	}
	if os.Args[1] == "kubernetes" {
		references(&found)
	}
	for _, fault := range found {
		fmt.Println(fault)
	}
	fmt.Printf("%s: %d looked at in %d files, %d faults\n", os.Args[1], looked, len(os.Args)-2, len(found))
	if len(found) > 0 || looked == 0 {
		os.Exit(1)
	}
}
