// cdi-resolve asks the library that containerd and CRI-O resolve CDI devices with.
//
//	cdi-resolve DIRECTORY NAME...
//
// It prints what a container that names these devices is given, as a patch of its OCI spec, or ends
// with the library's words and code 1.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func main() {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(os.Args[1]), cdi.WithAutoRefresh(false))
	if err != nil {
		fail(err)
	}
	spec := &oci.Spec{}
	if _, err := cache.InjectDevices(spec, os.Args[2:]...); err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(spec); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
