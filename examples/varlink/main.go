// SPDX-License-Identifier: Apache-2.0

// Start a program on a device of Tapster's, from Go, with github.com/varlink/go.
//
//	go run main.go BRIDGE COMMAND...
//
// COMMAND has NAME and MAC of its device in the environment, and opens the device by
// name: this client takes no descriptors. On Debian:
//
//	apt install golang-go golang-github-varlink-go-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o start main.go
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/varlink/go/varlink"
)

// Only the fields that this program needs: the daemon fills in the rest.

type tap struct {
	Bridge string `json:"bridge"`
	Owner  string `json:"owner"`
}

type nic struct {
	Tap tap `json:"tap"`
}

type acquire struct {
	Nics []nic  `json:"nics"`
	Bind string `json:"bind"`
}

type lease struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	MAC  string `json:"mac"`
}

type acquired struct {
	Devices []struct {
		Lease lease `json:"lease"`
	} `json:"devices"`
}

type release struct {
	Lease string `json:"lease"`
}

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(bridge string, command []string) (err error) {
	socket := os.Getenv("TAPSTER_SOCKET")
	if socket == "" {
		socket = "/run/tapster/tapster.sock"
	}
	ctx := context.Background()
	daemon, err := varlink.NewConnection(ctx, "unix:"+socket)
	if err != nil {
		return fmt.Errorf("no daemon answers: %w", err)
	}
	defer daemon.Close()

	// "caller": the lease ends with this process, if it is killed before the release.
	asked := acquire{[]nic{{tap{Bridge: bridge, Owner: "go"}}}, "caller"}
	var got acquired
	if err := daemon.Call(ctx, "io.tapster.Acquire", asked, &got); err != nil {
		return explained(err)
	}
	device := got.Devices[0].Lease
	defer func() {
		released := daemon.Call(ctx, "io.tapster.Release", release{device.ID}, nil)
		if err == nil && released != nil {
			err = explained(released)
		}
	}()

	vm := exec.Command(command[0], command[1:]...)
	vm.Env = append(os.Environ(), "NAME="+device.Name, "MAC="+device.MAC)
	vm.Stdin, vm.Stdout, vm.Stderr = os.Stdin, os.Stdout, os.Stderr
	return vm.Run()
}

// explained makes an error of the daemon's readable: it has a message and a remedy.
func explained(err error) error {
	var failed *varlink.Error
	if errors.As(err, &failed) {
		return fmt.Errorf("%s: %s", failed.Name, failed.Parameters)
	}
	return err
}
