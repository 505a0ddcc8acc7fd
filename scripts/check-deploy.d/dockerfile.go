package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// dockerfile parses a file as BuildKit does and looks at its last stage. Gives the number of instructions.
func dockerfile(path string, found *faults) int {
	file, err := os.Open(path)
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	for _, warning := range parsed.Warnings {
		found.add(path, "%s", warning.Short)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		found.add(path, "%v", err)
		return 0
	}
	looked, user, entrypoint := 0, "", false
	names := map[string]bool{}
	for number, stage := range stages {
		if why := pinned(stage.BaseName); why != "" && !names[stage.BaseName] {
			found.add(path, "the image %s %s", stage.BaseName, why)
		}
		names[stage.Name] = true
		looked += len(stage.Commands) + 1
		for _, command := range stage.Commands {
			switch c := command.(type) {
			case *instructions.CopyCommand:
				if c.From != "" {
					if !names[c.From] {
						found.add(path, "copies from the stage %s, which there is none of", c.From)
					}
					continue
				}
				for _, source := range c.SourcePaths {
					if _, err := os.Stat(filepath.Join(filepath.Dir(path), source)); err != nil {
						found.add(path, "is copied and not there: %v", err)
					}
				}
			case *instructions.AddCommand:
				found.add(path, "ADD fetches and unpacks; COPY says what it does")
			case *instructions.UserCommand:
				user = c.User
			case *instructions.EntrypointCommand:
				if c.PrependShell {
					found.add(path, "the entry point runs in a shell, which keeps SIGTERM to itself")
				}
				entrypoint = true
			}
		}
		if number < len(stages)-1 {
			user, entrypoint = "", false
		}
	}
	id, _, _ := strings.Cut(user, ":")
	if id == "" || id == "0" || strings.Trim(id, "0123456789") != "" {
		found.add(path, "the user is %q; a number other than 0 lets runAsNonRoot be verified", user)
	}
	if !entrypoint {
		found.add(path, "has no entry point")
	}
	return looked
}
