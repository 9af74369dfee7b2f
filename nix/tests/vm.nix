# A NixOS host with two agents, from the first start to a reboot.
#
# NOT RUN where hyperhive is developed: it needs KVM and nixpkgs.  With both:  nix build .#tests.vm
{ self, pkgs }:
let
  # The second version of alice's system; built beside the first one, deployed by a switch.
  alice = greeting: {
    hyperhive.environment.GREETING = greeting;
    environment.etc.greeting.text = greeting;
  };
  base =
    { lib, ... }:
    {
      imports = [ self.nixosModules.host ];
      virtualisation = {
        # An image of its own for the store: owners in one that is shared with the host cannot be mapped.
        useNixStoreImage = true;
        writableStore = true;
        memorySize = 2048;
        diskSize = 4096;
      };
      users.users.ada.isNormalUser = true;
      services.hyperhive = {
        enable = true;
        adminUsers = [ "ada" ];
        agents.alice.source.module = lib.mkDefault (alice "one");
        agents.bob.source.module = { };
        agents.bob.network = "veth";
      };
    };
in
pkgs.testers.runNixOSTest {
  name = "hyperhive";

  nodes.host = {
    imports = [ base ];
    specialisation = {
      two.configuration.services.hyperhive.agents.alice.source.module = alice "two";
      # Its init ends at once: the machine never says that it is up.
      bad.configuration.services.hyperhive.agents.alice.source.module = {
        systemd.services.systemd-journald.enable = false;
        systemd.defaultUnit = "emergency.target";
      };
      louder.configuration.services.hyperhive.settings.log_level = "debug";
    };
  };

  testScript = ''
    SYSTEM = "/run/booted-system"

    def switch(name):
        return host.execute(f"{SYSTEM}/specialisation/{name}/bin/switch-to-configuration test")

    def leader(agent):
        return host.succeed(f"machinectl show h-{agent} -p Leader --value").strip()

    def greeting():
        return host.succeed("hive exec alice -- cat /etc/greeting").strip()


    host.start()
    host.wait_for_unit("hive-core.service")

    with subtest("declared agents are there"):
        for agent in ["alice", "bob"]:
            host.wait_until_succeeds(f"machinectl show h-{agent}", timeout=180)
        host.wait_until_succeeds("hive exec alice -- cat /etc/greeting", timeout=60)
        assert greeting() == "one"

    with subtest("members of hive-admin operate the hive, and nobody else"):
        host.succeed("su ada -c 'hive ls'")
        host.fail("su nobody -s /bin/sh -c 'hive ls'")

    with subtest("two agents talk"):
        host.succeed("hive send alice 'say bob: hello from alice'")
        host.wait_until_succeeds("hive messages | grep -q 'hello from alice'", timeout=60)

    with subtest("another log level restarts nobody"):
        before = leader("alice"), leader("bob")
        switch("louder")
        assert before == (leader("alice"), leader("bob"))

    with subtest("a deploy changes one agent, and only that one"):
        others = leader("bob")
        switch("two")
        host.wait_until_succeeds("hive exec alice -- grep -qx two /etc/greeting", timeout=120)
        assert leader("bob") == others

    with subtest("a bad deploy is told, and rolled back by the next switch"):
        switch("bad")
        host.wait_until_succeeds("hive inbox | grep -q alice", timeout=300)
        assert leader("bob") == others
        switch("two")
        host.wait_until_succeeds("hive exec alice -- grep -qx two /etc/greeting", timeout=180)

    with subtest("a restart of the daemon keeps the machines"):
        before = leader("alice"), leader("bob")
        host.succeed("systemctl restart hive-core.service")
        host.succeed("hive ls")
        assert before == (leader("alice"), leader("bob"))

    with subtest("a reboot brings them back"):
        host.shutdown()
        host.start()
        host.wait_for_unit("hive-core.service")
        for agent in ["alice", "bob"]:
            host.wait_until_succeeds(f"machinectl show h-{agent}", timeout=180)
  '';
}
